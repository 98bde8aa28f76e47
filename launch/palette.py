"""The colours of subspaces, one list for terminals, figures and pages; imports nothing."""

from __future__ import annotations

# In the order of their birth: one ramp from cold to warm, so that colour alone tells old from young.
SUBSPACES = (
    "#3669b0", "#2f8fb0", "#3aa68c", "#86b052", "#d9b13b", "#e08a35", "#d2603f", "#b3476b", "#7d4a9a", "#6b6f86",
)  # fmt: skip


def subspace_colour(subspace: int) -> str:
    """Return the colour of a subspace, counted from 0."""
    return SUBSPACES[subspace % len(SUBSPACES)]
