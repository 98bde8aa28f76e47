"""Curves of runs of any length: few points, all of them on the formula that the files were written by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_shards.errors import DataIntegrityError
from launch.dashboard import curves as it
from tests.launch.dashboard.make_runs import STEP_S, loss_at, make_run, score_at


@pytest.mark.parametrize("num_steps", [100, 400, 30_000])
def test_points_lie_on_the_curves(tmp_path: Path, num_steps: int) -> None:
    found = it.Curves(make_run(tmp_path / "run", num_steps, num_steps // 10)).read(1)
    assert 50 <= len(found["loss"]) <= it.NUM_POINTS
    for epoch, step, hours, loss in found["loss"]:
        assert loss == pytest.approx(loss_at(round(step)), abs=2e-2)
        assert epoch == pytest.approx(10 * step / num_steps, abs=2e-3)
        assert hours == pytest.approx((step - found["loss"][0][1]) * STEP_S / 3600, abs=1e-4)
    assert found["loss"][-1][1] > 0.97 * num_steps
    assert {value for *_, value in found["images_per_s"]} == {250.0}
    scores = [(epoch, value) for epoch, _, _, value in found["scores"]["recall@1"]]
    assert scores == [(epoch, pytest.approx(score_at(epoch, 10), abs=1e-4)) for epoch in range(1, 11)]
    assert set(found["scores"]) == {"NMI", "AMI", "recall@1", "macro recall@1", "MAP@R"}
    assert [(epoch, k) for epoch, _, _, k in found["k"]] == [(0, 1), (5, 1), (5, 2), (10, 2)]


def test_what_a_run_writes_is_seen_at_the_next_look(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 200, 100)
    curves = it.Curves(run)
    before = curves.read(1)
    assert [point[0] for point in before["scores"]["NMI"]] == [1, 2]
    make_run(tmp_path / "longer", 400, 100)
    text = (tmp_path / "longer" / "metrics.jsonl").read_text()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text[len((run / "metrics.jsonl").read_text()) :])
    assert [point[0] for point in curves.read(1)["scores"]["NMI"]] == [1, 2, 3, 4]


def test_the_epoch_under_way_is_not_yet_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 200, 100)
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(201, 251):
            file.write(json.dumps({"epoch": 2, "step": step, "loss": 1.0}) + "\n")
    end = it.Curves(run).read(1)["loss"][-1]
    assert end[:2] == [pytest.approx(2.5, abs=0.02), pytest.approx(250, abs=2)]


def test_many_epochs_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(it, "MAX_EPOCHS", 50)
    curves = it.Curves(make_run(tmp_path / "run", 1500, 10))
    points = curves.read(1)["scores"]["NMI"]
    assert len(curves._epochs) <= 50
    assert all(value == pytest.approx(score_at(round(epoch), 150), abs=1e-4) for epoch, _, _, value in points)


def test_nothing_yet_and_nothing_finite(tmp_path: Path) -> None:
    empty = it.Curves(tmp_path).read(None)
    assert empty == {"loss": [], "images_per_s": [], "k": [], "scores": {}}
    (tmp_path / "metrics.jsonl").write_text(
        '{"epoch": 0, "step": 1, "loss": NaN}\n{"epoch": 0, "step": 2, "loss": 2}\n'
    )
    assert [point[3] for point in it.Curves(tmp_path).read(3)["loss"]] == [2.0]
    assert [point[3] for point in it.Curves(tmp_path).read(3)["k"]] == [3.0, 3.0]


def test_damage_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": [], "step": 1, "train": {"loss": 2}}\n')
    with pytest.raises(DataIntegrityError, match="damaged"):
        it.Curves(tmp_path).read(1)
