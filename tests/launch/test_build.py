"""Opening the data of a run: the part that data.fraction names, alike on every rank; shards that are built for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.errors import UserError
from data_shards.reader import open_shards
from launch.build import build_missing_shards, open_splits
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


def test_missing_shards_are_built_at_the_size_that_windows_are_cut_from(tmp_path: Path) -> None:
    data = {"shards": str(tmp_path / "eyes"), "build": "vessels", "build_options": {"num_samples": 10, "pixels": 64}}
    build_missing_shards(checked({"data": {**data, "image_size": 32, "resize": 64}}, "it"))
    assert open_shards(tmp_path / "eyes").manifest.image_size == 64
