"""Splits that no publisher gives: keyed, stratified by class, never tearing a group (patient, lesion) apart.

Which group goes where depends on (seed, names of the groups), not on the order of the files, so a data set that grows
keeps most of its split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data_shards.errors import UserError, nearest_of
from data_shards.keyed import fold, key, uniform
from data_shards.sources.listing import Record

DRAWS = ("keyed", "first")


def assign(records: Sequence[Record], fractions: Mapping[str, float], seed: int, rest: str = "train") -> list[Record]:
    """Give every record a split: `fractions` of each class to the named splits, what is left to `rest`.

    Counts per class are exact (rounded) where groups allow it, since a group is moved whole; raises UserError for
    fractions that are negative or sum to 1 or more.
    """
    if any(not 0 <= share < 1 for share in fractions.values()) or sum(fractions.values()) >= 1:
        raise UserError(f"Split fractions {dict(fractions)} must lie in [0, 1) and leave something for {rest}.")
    counts = Counter(record.label for record in records)
    quotas = {name: {split: round(share * num) for split, share in fractions.items()} for name, num in counts.items()}
    return assign_counts(records, quotas, seed, rest)


def assign_counts(
    records: Sequence[Record], quotas: Mapping[str, Mapping[str, int]], seed: int, rest: str = "train"
) -> list[Record]:
    """Like `assign`, with the wanted number of images as quotas[label][split]."""
    units: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        units[f"group:{record.group}" if record.group else f"path:{record.path}"].append(index)
    order = sorted(units, key=lambda name: (key(seed, "split", name), name))
    wanted = list(dict.fromkeys(split for quota in quotas.values() for split in quota))
    taken: dict[str, Counter[str]] = {split: Counter() for split in wanted}
    splits = [rest] * len(records)
    for name in order:
        sizes = Counter(records[index].label for index in units[name])
        for split in wanted:
            if _nearer(sizes, taken[split], {label: quotas.get(label, {}).get(split, 0) for label in sizes}):
                taken[split].update(sizes)
                for index in units[name]:
                    splits[index] = split
                break
    return [replace(record, split=split) for record, split in zip(records, splits, strict=True)]


def carve(
    records: Sequence[Record], fraction: float, seed: int, take: str = "validation", draw: str = "keyed"
) -> list[Record]:
    """Move `fraction` of the train split to `take`, group by group; other splits stay as they are.

    `draw` is "keyed" (of each class, by the seed) or "first" (the first of the list, rounded down, as in the code of
    Chen et al. 2021, https://arxiv.org/abs/2108.09440). Raises UserError for other words and fractions.
    """
    if draw not in DRAWS:
        raise UserError(f"draw={draw} is unknown{nearest_of(draw, list(DRAWS))}; use {' or '.join(DRAWS)}.")
    if fraction == 0:
        return list(records)
    train = [index for index, record in enumerate(records) if record.split == "train"]
    moved = [records[i] for i in train]
    moved = assign(moved, {take: fraction}, seed) if draw == "keyed" else _first(moved, fraction, take)
    result = list(records)
    for index, record in zip(train, moved, strict=True):
        result[index] = record
    return result


def first_whole(groups: Sequence[str], num: int) -> list[bool]:
    """Return which of the first `num` places are taken: those whose group ("" is none) does not go on behind them."""
    behind = {group for group in groups[num:] if group}
    return [place < num and group not in behind for place, group in enumerate(groups)]


def _first(records: Sequence[Record], fraction: float, take: str) -> list[Record]:
    if not 0 <= fraction < 1:
        raise UserError(f"{take}={fraction} must lie in [0, 1).")
    taken = first_whole([record.group for record in records], int(fraction * len(records) + 1e-9))
    return [replace(record, split=take if mine else record.split) for record, mine in zip(records, taken, strict=True)]


def complete(
    records: Sequence[Record], validation: float | None, test: float | None, seed: int, draw: str = "keyed"
) -> tuple[list[Record], list[str]]:
    """Add the splits that a source lacks and say so: no split at all -> 10 % validation and 20 % test; no validation
    -> 10 % of train. An explicit 0 keeps a split empty; an explicit fraction of a split that exists is an error, and so
    is any `draw` but "keyed" where there is no split to take from.
    """
    there = {record.split for record in records} - {""}
    if there and (bare := [record.path for record in records if not record.split]):
        raise UserError(f"{len(bare)} image(s) have no split while others have one, e.g. {bare[0]}; fill in the split.")
    for split, share in (("validation", validation), ("test", test)):
        if share and split in there:
            raise UserError(f"The source has a {split} split of its own; leave out {split}={share}.")
    if not there:
        if draw != "keyed":
            raise UserError(f"draw={draw} takes from a training split, and the source has no splits; leave it out.")
        shares = {"validation": 0.1 if validation is None else validation, "test": 0.2 if test is None else test}
        made = ", ".join(f"{share:.0%} {split}" for split, share in shares.items())
        return assign(records, shares, seed), [f"The source has no splits; drawn here, by class and group: {made}."]
    notes: list[str] = []
    result = list(records)
    for split, share in (("test", test), ("validation", 0.1 if validation is None else validation)):
        if share and split not in there and "train" in there:
            result = carve(result, share, seed, split, draw)
            how = "by class and group" if draw == "keyed" else "the first of the list"
            notes.append(f"The source has no {split} split: {share:.0%} of train taken for it, {how}.")
            if not any(record.split == split for record in result):
                notes.append(f"The {split} split is empty: classes or groups are too few or too large to share out.")
    return result, notes


def shuffled(num: int, *parts: int | str) -> list[int]:
    """Return 0..num-1 in a keyed order."""
    return np.argsort(uniform(fold(key(*parts), np.arange(num)), 1)[:, 0], kind="stable").tolist()


def _nearer(sizes: Mapping[str, int], taken: Mapping[str, int], quotas: Mapping[str, int]) -> bool:
    """A unit is taken unless it leads away from the quotas of its classes; a lone image never overshoots."""
    before = sum(abs(quotas[label] - taken[label]) for label in sizes)
    after = sum(abs(quotas[label] - taken[label] - num) for label, num in sizes.items())
    return after <= before
