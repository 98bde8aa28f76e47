"""`subspace export` and the folder read back: whole paths by the command line, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data_shards.errors import UserError
from data_shards.reader import open_shards
from launch import exported
from launch.trained import unchanged
from tests.launch.best_run import best_run
from trainer.tensor_file import read_tensors

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    with unchanged():
        yield


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with unchanged():
        folder = best_run(tmp_path_factory.mktemp("run") / "run", digits, 16)
    (folder / "evaluation").mkdir()
    scores = {"num_samples": 7, "nmi": {"mean": 0.5}, "ami": {"mean": 0.5}, "recall": {"1": 0.75}}
    scores |= {"macro_recall_at_1": 0.5, "map_at_r": 0.5}
    (folder / "evaluation" / "test.json").write_text(json.dumps(scores))
    return folder


def test_the_folder_is_read_back_as_it_was_written(run: Path, cli: Cli, digits: Path) -> None:
    code, out, err = cli("export", run)
    assert code == 0, err
    assert [Path(line).name for line in out.splitlines()] == ["model.safetensors", "config.json", "README.md"]
    card = (run / "exported" / "README.md").read_text()
    numbers = [len(open_shards(digits).split(split)) for split in ("train", "validation", "test")]
    assert "| test | 7 | 0.5000 |" in card and "| all | {} | {} | {} |".format(*numbers) in card
    assert str(digits) not in card + (run / "exported" / "config.json").read_text()
    ready = exported.read(run / "exported", "cpu")
    stored = read_tensors(run / "exported" / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in ready.network.state_dict().items())
    assert ready.partition.widths == (3, 3) and not ready.network.training
    assert (ready.preprocessing.channels, ready.preprocessing.size, ready.preprocessing.view.size) == (1, 16, 16)


@pytest.mark.parametrize(("kind", "name"), [("safetensors", "backbone.safetensors"), ("torch", "model.pt2")])
def test_other_formats_are_one_file(run: Path, cli: Cli, tmp_path: Path, kind: str, name: str) -> None:
    code, out, err = cli("export", run, "--format", kind, "--out", tmp_path / "here")
    assert (code, out.strip()) == (0, str(tmp_path / "here" / name)), err
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]


def test_onnx(run: Path, cli: Cli, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    code, _, err = cli("export", run, "--format", "onnx", "--out", tmp_path)
    assert code == 0, err
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(told["preprocessing"])["fit_size"] == 16 and json.loads(told["widths"]) == [3, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has no format 1"),
        ({"widths": [3, 4]}, "are not those of 6 dimensions"),
        ({"widths": []}, "'widths'"),
        ({"preprocessing": {"channels": 2, "fit": "crop", "fit_size": 16}}, "'preprocessing.channels'"),
        ({"run_config": {"data": {}}}, "'data.shards' is missing"),
    ],
)
def test_a_folder_that_is_none_is_refused(
    run: Path, cli: Cli, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    cli("export", run, "--out", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        exported.read(tmp_path, "cpu")


def test_weights_of_another_network_are_refused(run: Path, cli: Cli, tmp_path: Path) -> None:
    cli("export", run, "--out", tmp_path)
    path = tmp_path / "config.json"
    tree = json.loads(path.read_text())
    tree["run_config"]["model"]["backbone"]["widths"] = [4, 12]
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="is not the network of"):
        exported.read(tmp_path, "cpu")


def test_a_run_without_vectors_has_weights_only(digits: Path, tmp_path: Path, cli: Cli) -> None:
    local = {
        "model": {"backbone": {"name": "vgg16"}, "gate": {"name": "none"}, "head": {"name": "dense"}},
        "growth": {"enabled": False, "monitor": "loss"},
        "evaluate": {"by": "loss"},
        "objective": {"local": {}},
    }
    (tmp_path / "run").mkdir()
    tree = {"data": {"shards": str(digits), "image_size": 16}, **local}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(tree))
    code, _, err = cli("export", tmp_path / "run", "--format", "onnx")
    assert code == 2
    assert "no embedding to give" in err
