"""Opening the data of a run: the part that data.fraction names, alike on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.errors import UserError
from launch.build import open_splits
from launch.config import checked
from tests.ranks import run_on_ranks


def sizes_and_ids(folder: str, fraction: float) -> tuple[list[int], list[int]]:
    config = checked({"data": {"shards": folder, "fraction": fraction, "image_size": 16}}, "it")
    _, train, validation, test = open_splits(config)
    assert test is not None
    return [len(validation), len(test)], train.sample_ids.tolist()


def test_ranks_open_the_same_part_of_the_training_split_only(digits: Path) -> None:
    sizes, everything = sizes_and_ids(str(digits), 1.0)
    (first, second) = run_on_ranks(sizes_and_ids, 2, str(digits), 0.25)
    assert first == second == sizes_and_ids(str(digits), 0.25)
    assert first[0] == sizes
    assert set(first[1]) < set(everything)
    assert set(first[1]) < set(sizes_and_ids(str(digits), 0.5)[1])


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_no_other_fractions(fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.fraction"):
        sizes_and_ids("x", fraction)
