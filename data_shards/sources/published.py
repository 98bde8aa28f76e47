"""Compare what was found on the disk with what the publication counted, and say the differences in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from data_shards.sources.listing import Record

Counts = Mapping[str, tuple[int | None, int]]
_NAMED = 6
_LISTED = 20


def differences(records: Sequence[Record], published: Counts, what: str) -> list[str]:
    """Return a sentence when images per class differ from `published` (class -> train, test), else nothing.

    Validation images count as train, since they are carved from it. A train count of None is one nobody published.
    """
    found = Counter((record.label, "test" if record.split == "test" else "train") for record in records)
    texts = [
        f"{name} {side} {found[name, side]:,} instead of {counts[place]:,}"
        for name, counts in published.items()
        for place, side in enumerate(("train", "test"))
        if counts[place] not in (None, found[name, side])
    ]
    if not texts:
        return []
    more = [f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return [
        f"{len(records):,} images found, {what} counts {_totals(published)}; different: "
        f"{', '.join(texts[:_NAMED] + more)}. Results are then not comparable with published ones."
    ]


def left_out(what: str, names: Sequence[str], why: str) -> list[str]:
    """Return the note that some `what` ("slide") were left out, with twenty of their names; none for none."""
    if not names:
        return []
    more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return [f"{len(names)} {what}(s) were left out, {why}: {', '.join([*names[:_LISTED], *more])}."]


def _totals(published: Counts) -> str:
    train = [counts[0] for counts in published.values() if counts[0] is not None]
    test = sum(counts[1] for counts in published.values())
    if len(train) < len(published):
        return f"{test:,} in the test"
    return f"{sum(train) + test:,} ({sum(train):,} train, {test:,} test)"
