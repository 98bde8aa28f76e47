"""Compare what was found on the disk with what the publication counted, and say the differences in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from data_shards.sources.listing import Record

Counts = Mapping[str, tuple[int, int]]
_NAMED = 6


def differences(records: Sequence[Record], published: Counts, what: str) -> list[str]:
    """Return a sentence when images per class differ from `published` (class -> train, test), else nothing.

    Validation images count as train, since they are carved from it.
    """
    found = Counter((record.label, "test" if record.split == "test" else "train") for record in records)
    totals = [sum(counts[side] for counts in published.values()) for side in (0, 1)]
    texts = [
        f"{name} {side} {found[name, side]:,} instead of {counts[place]:,}"
        for name, counts in published.items()
        for place, side in enumerate(("train", "test"))
        if found[name, side] != counts[place]
    ]
    if not texts:
        return []
    more = [f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return [
        f"{len(records):,} images found, {what} counts {sum(totals):,} ({totals[0]:,} train, {totals[1]:,} test); "
        f"different: {', '.join(texts[:_NAMED] + more)}. Results are then not comparable with published ones."
    ]
