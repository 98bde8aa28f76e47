from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import UserError
from data_shards.sources.listing import Record
from data_shards.sources.splits import assign, assign_counts, carve, complete, first_whole

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


@given(st.lists(st.sampled_from(["", "p", "q", "r"]), max_size=40), st.integers(0, 40))
def test_no_group_is_torn_by_taking_the_first(groups: list[str], num: int) -> None:
    taken = first_whole(groups, num)
    sides = {(group, mine) for group, mine in zip(groups, taken, strict=True) if group}
    assert len(sides) == len({group for group, _ in sides})
    assert not any(taken[num:])
    assert all(mine or group in groups[num:] for group, mine in zip(groups[:num], taken, strict=False))


@pytest.mark.parametrize(
    ("num", "taken"), [(20, 4), (10, 2), (25, 5), (50, 10), (54, 10), (53, 10), (26, 5), (124, 24), (1334, 266)]
)
def test_the_first_fifth_as_published(num: int, taken: int) -> None:
    records = [Record(f"{i:04d}.png", "a", "train") for i in range(num)]
    done = carve(records, 0.2, 0, draw="first")
    assert [record.path for record in done] == [record.path for record in records]
    assert [record.split for record in done] == ["validation"] * taken + ["train"] * (num - taken)


def test_the_first_leave_a_torn_patient_in_training() -> None:
    records = [Record(f"{i}", "a", "train", group=f"g{i // 2}") for i in range(10)] + [Record("x", "a", "test")]
    assert [r.split for r in carve(records, 0.5, 0, draw="first")] == ["validation"] * 4 + ["train"] * 6 + ["test"]


def test_the_first_of_what_has_a_training_split_only() -> None:
    done, notes = complete([Record(f"{i}", "a", "train") for i in range(10)], 0.2, None, 0, "first")
    assert Counter(record.split for record in done) == {"train": 8, "validation": 2}
    assert notes == ["The source has no validation split: 20% of train taken for it, the first of the list."]
    with pytest.raises(UserError, match="the source has no splits"):
        complete(plain(10), 0.2, None, 0, "first")
    for fraction, draw, message in ((0.2, "frist", "did you mean 'first'"), (1.0, "first", "must lie in")):
        with pytest.raises(UserError, match=message):
            carve(plain(10, "train"), fraction, 0, draw=draw)
