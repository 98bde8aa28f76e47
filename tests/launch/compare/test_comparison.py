"""The numbers of a comparison, from run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.compare.comparison import compared
from launch.compare.sweep_file import read_sweep
from tests.launch.compare.make_sweep import write_evaluation, write_runs, write_sweep


def test_numbers_come_from_the_runs(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    out = tmp_path / "out"
    found = write_runs(path, out, skip=("digits single seed 0", "digits single seed 1", "digits mml-2 seed 1"))
    (block,) = compared(read_sweep(path), out, found, {}, lambda text: None).blocks
    stored = [json.loads((cell.run / "evaluation/test.json").read_text()) for cell in found[:3]]
    recall = [scores["recall"]["1"] for scores in stored]
    assert block.split == "test"
    assert block.row("adsl").scores["recall_at_1"].mean == pytest.approx((recall[0] + recall[1]) / 2)
    assert block.row("single").scores == {}
    difference = block.row("mml-2").differences["recall_at_1"]
    assert difference.num_seeds == 1
    assert difference.difference == pytest.approx(recall[2] - recall[0])  # paired with the reference's own seed
    assert difference.low <= difference.difference <= difference.high
    assert block.row("adsl").differences == {}
    assert block.notes == []


def test_without_a_test_split_in_all_runs_validation_is_compared(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    out = tmp_path / "out"
    found = write_runs(path, out)
    for cell in found:
        write_evaluation(cell.run, "validation", 1.0, 120, 3)
    assert compared(read_sweep(path), out, found, {}, lambda text: None).blocks[0].split == "test"
    (found[0].run / "evaluation/test.json").unlink()
    assert compared(read_sweep(path), out, found, {}, lambda text: None).blocks[0].split == "validation"


def test_runs_on_other_images_get_no_interval_and_a_note(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    out = tmp_path / "out"
    found = write_runs(path, out)
    write_evaluation(found[-1].run, "test", 1.0, 100, 3)
    (block,) = compared(read_sweep(path), out, found, {}, lambda text: None).blocks
    assert [row.differences for row in block.rows] == [{}, {}, {}]
    assert block.notes == ["There are no intervals: the methods were not evaluated on the same images."]
