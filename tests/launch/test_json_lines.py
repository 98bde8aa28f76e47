"""Ends, samples and news of long files, against reading them whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from data_shards.errors import UserError
from launch import json_lines


def write(path: Path, num_steps: int, epoch_every: int = 100) -> list[dict[str, object]]:
    """Write steps, with the line of an epoch after every hundred; return the latter."""
    epochs = []
    with path.open("w") as file:
        for step in range(1, num_steps + 1):
            file.write(json.dumps({"epoch": (step - 1) // epoch_every, "step": step, "loss": 1 / step}) + "\n")
            if step % epoch_every == 0:
                epochs.append({"epoch": step // epoch_every - 1, "step": step, "train": {"loss": 0.5}})
                file.write(json.dumps(epochs[-1]) + "\n")
    return epochs


def test_tail_records_reads_the_end_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    epochs = write(path, 5000)
    with path.open("a") as file:
        file.write('{"step": 5001, "lo')
    steps = [r["step"] for r in json_lines.tail_records(path, max_bytes=1000) if "loss" in r]
    assert steps == list(range(5001 - len(steps), 5001))
    assert 10 < len(steps) < 30
    assert json_lines.tail_records(path, 1 << 20, json_lines.EPOCH_LINE) == epochs
    assert json_lines.tail_records(tmp_path / "none") == []


@pytest.mark.parametrize("num_steps", [0, 3, 20_000])
def test_samples_are_lines_of_the_file_in_order(tmp_path: Path, num_steps: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, num_steps)
    places = json_lines.sampled_records(path, 20, 400)
    steps = [record["step"] for place in places for record in place if "loss" in record]
    assert steps == sorted(set(steps))
    if num_steps < 100:
        assert steps == list(range(1, num_steps + 1))
    else:
        assert len(places) == 20
        assert steps[0] == 1
        assert steps[-1] == num_steps


def test_a_follower_sees_every_marked_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 257)  # lines are torn by blocks everywhere
    path = tmp_path / "metrics.jsonl"
    follower = json_lines.Follower(path, json_lines.EPOCH_LINE)
    assert follower.look() == (False, [])
    epochs = write(path, 1000)
    assert follower.look() == (True, epochs)
    assert follower.look() == (False, [])
    with path.open("a") as file:
        file.write('{"epoch": 10, "train": {"loss"')
        file.flush()
        assert follower.look() == (False, [])
        file.write(": 0.25}}\n")
    assert follower.look() == (False, [{"epoch": 10, "train": {"loss": 0.25}}])


def test_a_file_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint writes its metrics.jsonl anew, without the steps that it has lost."""
    path = tmp_path / "metrics.jsonl"
    follower = json_lines.Follower(path, json_lines.EPOCH_LINE)
    write(path, 500)
    follower.look()
    kept = write(tmp_path / "new", 300)
    (tmp_path / "new").replace(path)
    assert follower.look() == (True, kept)


def test_lines_that_have_no_end_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(json_lines, "_MAX_LINE_BYTES", 128)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 5000 + b'"train": {' + b"x" * 5000 + b'\n{"epoch": 0, "train": {"loss": 1}}\n')
    found = json_lines.Follower(path, json_lines.EPOCH_LINE).look()[1]
    assert found == [{"epoch": 0, "train": {"loss": 1}}]


def test_what_is_no_plain_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="not a plain file"):
        json_lines.tail_records(tmp_path / "metrics.jsonl")
