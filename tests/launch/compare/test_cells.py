"""The runs of a sweep: their configurations, words and folders, and folders that belong to something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.errors import UserError
from launch.compare.cells import Cell, as_text, cells, check
from launch.compare.sweep_file import read_sweep
from launch.config import load_config
from launch.overrides import parse_overrides
from launch.status import write_status
from tests.launch.compare.make_sweep import complete, write_runs, write_sweep
from tests.runs import ROOT

VALUES = [3, 0.5, 1e-5, True, None, "margin", "a: b", "x" * 300, [1, 2.5e-7], {"name": "m", "a": 1e-5}]


@pytest.mark.parametrize("value", VALUES)
def test_values_come_back_from_their_text(value: object) -> None:
    assert parse_overrides([f"a.b={as_text(value)}"]) == {"a.b": value}


def test_the_words_of_a_cell_make_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sweep(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = cells(read_sweep(path), path, Path("out"))
    assert [cell.name for cell in found] == [
        f"digits {m} seed {s}" for m in ("adsl", "mml-2", "single") for s in (0, 1)
    ]
    cell = found[3]
    assert cell.run == Path("out/runs/digits/mml-2/seed-1")
    assert cell.words == ("config.yaml", "--resume", "auto", "model.num_subspaces=2", "seed=1")
    assert cell.config == load_config(Path("config.yaml"), list(cell.words[3:]))
    assert (cell.config.seed, cell.config.model.num_subspaces) == (1, 2)


CHAIN = {
    "start": {},
    "frozen": {"model.weights": "@start/exported/model.safetensors"},
    "fine": {"model.weights": "@frozen/exported/model.safetensors"},
}


def test_a_method_may_start_from_the_run_of_another_of_its_seed(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, methods=CHAIN, reference="fine", steps=["start"], titles={})
    sweep = read_sweep(path)
    found = {cell.name: cell for cell in cells(sweep, path, tmp_path / "out")}
    cell = found["digits fine seed 1"]
    assert cell.needs == ("digits frozen seed 1",)
    weights = tmp_path / "out" / "runs" / "digits" / "frozen" / "seed-1" / "exported" / "model.safetensors"
    assert cell.config.model.weights == str(weights)
    assert found["digits start seed 0"].needs == ()
    assert sweep.compared() == ["frozen", "fine"]


def test_cores_are_shared_out_where_threads_are_open(tmp_path: Path) -> None:
    entry = {"config": "config.yaml", "set": {"launch.nproc": 2, "train.batch_size": 32}}
    methods = {"adsl": {}, "mml-2": {"launch.threads": 7}, "single": {}}
    path = write_sweep(tmp_path, datasets={"digits": entry}, methods=methods)
    assert [c.config.launch.threads for c in cells(read_sweep(path), path, tmp_path, 8)][::2] == [4, 7, 4]
    assert [c.config.launch.threads for c in cells(read_sweep(path), path, tmp_path, 1)][::2] == [1, 7, 1]


def test_a_wrong_setting_names_dataset_and_method(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, methods={"adsl": {}, "mml-2": {"model.num_subspace": 2}}, titles={})
    with pytest.raises(
        UserError, match=r"^digits mml-2: .*unknown key 'model.num_subspace' \(did you mean 'num_subspaces'\?\)"
    ):
        cells(read_sweep(path), path, tmp_path / "out")


def test_a_folder_made_with_another_configuration_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_runs(write_sweep(tmp_path), out)
    path = write_sweep(tmp_path, methods={"adsl": {}, "mml-2": {"model.num_subspaces": 3}, "single": {}})
    with pytest.raises(UserError) as caught:
        cells(read_sweep(path), path, out)
    run = out / "runs/digits/mml-2/seed-0"
    assert str(caught.value) == (
        f"{run} was made with another configuration: model.num_subspaces was 2, now 3; give another --out, put the"
        " setting back, or remove that folder to have its run made again"
    )


def test_what_may_change_when_a_run_goes_on_may_change_here(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_runs(write_sweep(tmp_path), out)
    path = write_sweep(tmp_path, datasets={"digits": {"config": "config.yaml", "set": {"launch.nproc": 4}}})
    assert {cell.state() for cell in cells(read_sweep(path), path, out)} == {"completed"}


def test_states(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    first, second, third, *_ = cells(read_sweep(path), path, tmp_path / "out")
    complete(first)
    write_status(second.run, state="preempted")
    assert [cell.state() for cell in (first, second, third)] == ["completed", "preempted", "new"]


def found_with(folder: Path, digits: Path, **loss: object) -> list[Cell]:
    entry = {"config": str(ROOT / "configs/smoke/fixed.yaml"), "set": {"data.shards": str(digits)}}
    methods = {"adsl": {}, "mml-2": {"objective.loss": {"name": "margin", **loss}}}
    path = write_sweep(folder, datasets={"digits": entry}, methods=methods, titles={})
    return cells(read_sweep(path), path, folder / "out")


def test_check_builds_the_parts_of_every_method(tmp_path: Path, digits: Path) -> None:
    check(found_with(tmp_path, digits, alpha=0.1), "test", build_shards=False)
    with pytest.raises(UserError, match=r"^digits mml-2: objective\.loss\.alhpa: .* \(did you mean 'alpha'\?\)"):
        check(found_with(tmp_path, digits, alhpa=0.1), "auto", build_shards=False)


def test_check_without_shards(tmp_path: Path) -> None:
    check(found_with(tmp_path, Path("nowhere")), "auto", build_shards=False)  # they can be built
    with pytest.raises(UserError, match=r"^digits mml-2: objective\.loss\.alhpa"):
        check(found_with(tmp_path, Path("nowhere"), alhpa=1), "auto", build_shards=False)
    cell = found_with(tmp_path, Path("nowhere"))[0]
    data = cell.config.data.model_copy(update={"build": None})
    with pytest.raises(UserError, match=r"^digits adsl: there are no shards at nowhere"):
        check([replace(cell, config=cell.config.model_copy(update={"data": data}))], "auto", build_shards=True)
