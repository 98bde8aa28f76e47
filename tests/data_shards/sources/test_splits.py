from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import UserError
from data_shards.sources.listing import Record
from data_shards.sources.splits import assign, assign_counts, carve, complete

LABELS = ("a", "b", "c")


def plain(num: int, split: str = "") -> list[Record]:
    return [Record(f"{i}.png", LABELS[i % 3], split) for i in range(num)]


@given(st.integers(3, 200), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_counts_per_class_are_exact_without_groups(num: int, validation: float, test: float, seed: int) -> None:
    records = assign(plain(num), {"validation": validation, "test": test}, seed)
    for label in LABELS:
        splits = Counter(record.split for record in records if record.label == label)
        total = sum(splits.values())
        wanted = round(validation * total)
        assert splits["validation"] == wanted
        assert splits["test"] == min(round(test * total), total - wanted)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 30)), min_size=1, max_size=150), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_groups_stay_together(images: list[tuple[str, int]], seed: int) -> None:
    records = [Record(f"{i}.png", label, "", group=f"g{group}") for i, (label, group) in enumerate(images)]
    done = assign(records, {"validation": 0.2, "test": 0.3}, seed)
    assert len({(record.group, record.split) for record in done}) == len({record.group for record in done})
    assert [record.path for record in done] == [record.path for record in records]


def test_groups_give_about_the_fraction() -> None:
    records = [Record(f"{i}.png", "a", "train", group=f"g{i // 5}") for i in range(1000)]
    splits = Counter(record.split for record in carve(records, 0.1, 0))
    assert splits == {"train": 900, "validation": 100}


def test_a_split_depends_on_names_not_on_order() -> None:
    records = plain(60)
    forward = {record.path: record.split for record in assign(records, {"test": 0.3}, 1)}
    backward = {record.path: record.split for record in assign(records[::-1], {"test": 0.3}, 1)}
    assert forward == backward
    assert forward != {record.path: record.split for record in assign(records, {"test": 0.3}, 2)}


def test_quotas_by_class() -> None:
    records = assign_counts(plain(30), {"a": {"test": 7}, "b": {"test": 0}, "c": {"test": 99}}, 0)
    assert Counter(record.label for record in records if record.split == "test") == {"a": 7, "c": 10}


def test_missing_splits_are_completed_and_said() -> None:
    records, notes = complete(plain(300), None, None, 0)
    assert Counter(record.split for record in records) == {"train": 210, "validation": 30, "test": 60}
    assert "no splits" in notes[0]
    records, notes = complete(plain(300, "train"), None, None, 0)
    assert Counter(record.split for record in records) == {"train": 270, "validation": 30}
    assert "no validation split: 10% of train" in notes[0]
    assert complete(plain(300, "train"), 0, None, 0) == (plain(300, "train"), [])
    both = [*plain(30, "train"), *plain(30, "validation")]
    assert complete(both, None, None, 0) == (both, [])
    with pytest.raises(UserError, match="validation split of its own"):
        complete(both, 0.1, None, 0)
    with pytest.raises(UserError, match=r"30 image\(s\) have no split"):
        complete([*plain(30, "train"), *plain(30)], None, None, 0)


def test_groups_too_large_to_share_are_said() -> None:
    records = [Record(f"{i}.png", "a", "train", group="everything") for i in range(10)]
    done, notes = complete(records, None, None, 0)
    assert done == records
    assert "validation split is empty" in notes[1]


@pytest.mark.parametrize("fractions", [{"test": -0.1}, {"test": 1.0}, {"test": 0.5, "validation": 0.5}])
def test_wrong_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(UserError, match="fractions"):
        assign(plain(3), fractions, 0)
