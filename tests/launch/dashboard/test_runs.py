"""Which runs a folder holds, what a row says of them, and that unchanged files are not read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.dashboard import runs as it
from tests.launch.dashboard.make_runs import make_run


def test_runs_are_found_at_any_depth_but_not_inside_runs_or_through_links(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "b" / "deep")
    make_run(tmp_path / "flat")
    make_run(tmp_path / "flat" / "checkpoints" / "inner")
    make_run(tmp_path / ".hidden" / "run")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(it.find_runs(tmp_path)) == ["a/b/deep", "flat"]
    assert it.find_runs(tmp_path / "flat") == {"flat": tmp_path / "flat"}


def test_rows_say_what_is_known_and_damage_is_a_sentence(tmp_path: Path) -> None:
    make_run(tmp_path / "done")
    make_run(tmp_path / "live", state="running", phase="training")
    make_run(tmp_path / "bad")
    (tmp_path / "bad" / "status.json").write_text("{")
    rows = it.Shelf(tmp_path).rows()
    assert [row["name"] for row in rows] == ["live", "done", "bad"]
    live, done, bad = rows
    assert (live["state"], live["phase"], live["epoch"], live["epochs"], live["k"]) == ("running", "training", 4, 6, 2)
    assert live["widths"] == [20, 12]
    assert live["scores"]["recall@1"] == pytest.approx(0.9)
    assert live["images_per_s"] == 250.0
    assert live["left_s"] is not None
    assert done["left_s"] is None
    assert bad["state"] == "damaged"
    assert "damaged" in bad["error"]
    assert "\n" not in bad["error"]
    json.dumps(rows, allow_nan=False)


def test_files_that_did_not_change_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []

    def look(run: Path) -> it.Glance:
        looks.append(run)
        return real(run)

    real = it.glance
    monkeypatch.setattr(it, "glance", look)
    shelf = it.Shelf(tmp_path)
    make_run(tmp_path / "one")
    two = make_run(tmp_path / "two")
    shelf.rows()
    assert len(looks) == 2
    shelf.rows()
    assert len(looks) == 2
    make_run(two, 800)
    shelf.rows()
    assert looks[2:] == [two]


def test_curves_of_what_is_no_run_of_this_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "in" / "run")
    outside = make_run(tmp_path / "out")
    shelf = it.Shelf(tmp_path / "in")
    assert shelf.curves("run") is not None
    for name in ("../out", str(outside), "", ".", "run/../run"):
        assert shelf.curves(name) is None


def test_damaged_curves_are_a_sentence(tmp_path: Path) -> None:
    make_run(tmp_path / "bad")
    (tmp_path / "bad" / "metrics.jsonl").write_text('{"epoch": [], "step": 1, "train": {"loss": 2}}\n')
    found = it.Shelf(tmp_path).curves("bad")
    assert found is not None
    assert "damaged" in found["error"]
