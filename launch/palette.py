"""The colours of subspaces and of runs, one list for terminals, figures and pages; imports nothing."""

from __future__ import annotations

# In the order of their birth: one ramp from cold to warm, so that colour alone tells old from young.
SUBSPACES = (
    "#3669b0", "#2f8fb0", "#3aa68c", "#86b052", "#d9b13b", "#e08a35", "#d2603f", "#b3476b", "#7d4a9a", "#6b6f86",
)  # fmt: skip
# Runs side by side: each can be told from white and from a dark page.
RUNS = ("#2f6fb3", "#b05a14", "#2f8564", "#8a63b5", "#c0406f", "#177e8d", "#84751f", "#6f7582")


def subspace_colour(subspace: int) -> str:
    """Return the colour of a subspace, counted from 0."""
    return SUBSPACES[subspace % len(SUBSPACES)]
