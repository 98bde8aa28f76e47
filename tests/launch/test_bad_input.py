"""Bad input: one clear line, the right exit code, no traceback, and nothing that existed is lost."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from launch import run_folder
from tests.runs import ROOT
from trainer.backbones.resnet import ResNet

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs the command line in this process: (exit code, what stderr says)."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: cli(*words)[::2]


@pytest.fixture
def config(digits: Path, tmp_path: Path) -> Path:
    """Return a configuration that works."""
    tree = yaml.safe_load((ROOT / "configs" / "smoke" / "fixed.yaml").read_text())
    tree["data"].update(shards=str(digits), build=None)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def one_line(text: str, *parts: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("subspace: ")]
    assert len(lines) == 1, text
    for part in parts:
        assert part in lines[0], lines[0]


def test_the_good_configuration_passes(run: Run, config: Path) -> None:
    assert run("train", config, "--dry-run") == (0, "")
    monai = "model.backbone={name: 'monai:densenet121', levels: 2, norm: group}"
    assert run("train", config, "--dry-run", monai) == (0, "")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("data.shards=nowhere",), ("nowhere", "subspace shards build")),
        (("data.imagesize=3",), ("data.imagesize", "image_size")),
        (("--train.epoch", "3"), ("train.epoch", "epochs")),
        (("model.backbone.width=3",), ("model.backbone.width", "widths")),
        (("model.backbone.name=resnet51",), ("resnet51", "resnet50")),
        (("objective.miner.name=nearest",), ("nearest", "nearest_beyond_cutoff")),
        (("train.epochs=soon",), ("train.epochs", "soon")),
        (("train.batch_size=60",), ("60", "train.samples_per_class 8")),
        (("launch.nproc=3",), ("train.batch_size 64", "3")),
        (("train.samples_per_class=512", "train.batch_size=1024"), ("512",)),
        (("model.num_subspaces=2000", "model.num_dims=4000"), ("2000", "1079")),
        (("model.backbone={name: 'monai:densenet12'}",), ("densenet12'", "did you mean 'densenet121'")),
        (("model.backbone={name: 'monai:resnet18', stages: 2}",), ("model.backbone.stages", "monai:resnet18")),
        (("model.backbone={name: 'monai:resnet18', levels: 9}",), ("1 to 4 levels", "9")),
        (("model.backbone={name: 'monai:resnet18'}",), ("data.image_size 16", "32", "model.backbone.levels")),
        (("model.backbone={name: 'torchvision:resnet18'}",), ("torchvision:resnet18", "monai:")),
        (("model.weights=nowhere.pth",), ("nowhere.pth",)),
        (("data.channels=3",), ("data.mean",)),
        (("--nproc", "2", "--deterministic", "train.logical_shards=5"), ("train.logical_shards 5",)),
        (("--nproc", "5", "--deterministic"), ("train.logical_shards 4", "5 ranks")),
        (("train.accumulate=2", "model.backbone.norm=sync"), ("train.accumulate", "norm")),
        (("--deterministic", "model.backbone.norm=batch"), ("norm",)),
        (("--deterministic", "train.compile=true"), ("train.compile", "deterministic")),
        (("train.checkpoint_activations=true", "model.backbone.norm=batch"), ("train.checkpoint_activations", "norm")),
        (("cluster=3",), ("cluster", "3")),
        (("train.engine.name=deepsped",), ("deepsped", "deepspeed")),
        (("train.engine.name=deepspeed", "train.engine.zero_stge=1"), ("train.engine.zero_stge", "zero_stage")),
        (("train.engine.zero_stage=1",), ("train.engine.name", "missing")),
        (("train.engine.name=ddp", "train.engine.zero_stage=1"), ("train.engine.zero_stage", "ddp")),
        (("train.engine.name=deepspeed", "train.engine.zero_stage=5"), ("train.engine.zero_stage", "5")),
        (("train.engine.name=deepspeed", "--deterministic"), ("deterministic", "train.engine.name ddp")),
        (("train.engine.name=deepspeed", "train.average_weights=0.9"), ("train.average_weights", "ddp")),
        (("train.precision=fp8",), ("train.precision", "fp16")),
    ],
)
def test_wrong_settings(run: Run, config: Path, words: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    code, text = run("train", config, *words, "--run-dir", tmp_path / "run")
    assert code == 2, text
    one_line(text, *parts)
    assert not (tmp_path / "run").exists()


def test_deepspeed_that_is_not_installed(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.engines.find_spec", lambda name: None)
    code, text = run("train", config, "--dry-run", "train.engine.name=deepspeed")
    assert code == 2
    one_line(text, "DeepSpeed is not installed", "pip install")
    assert "deepspeed" not in sys.modules  # nor is it imported to find that out


def test_timm_that_is_not_installed(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    code, text = run("train", config, "--dry-run", "model.backbone={name: 'timm:resnet50'}")
    assert code == 2
    one_line(text, "model.backbone.name", "timm is not installed", "subspace-trainer[timm]")


def test_absent_broken_and_empty_configuration(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("")
    for name in ("absent.yaml", "broken.yaml", "empty.yaml"):
        code, text = run("train", name)
        assert code == 2
        one_line(text, name)


def test_weights_of_another_architecture(run: Run, config: Path, tmp_path: Path) -> None:
    weights = tmp_path / "resnet34.pth"
    torch.save(ResNet(depth=34, stages=4).state_dict(), weights)
    words = ("model.backbone={name: resnet18}", "data.channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]")
    code, text = run("train", config, f"model.weights={weights}", *words)
    assert code == 2
    one_line(text, "resnet34.pth does not fit resnet18")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    code, text = run("train", config, f"model.weights={tmp_path / 'junk.pth'}", *words)
    assert code == 2
    one_line(text, "junk.pth", "no readable weights")


def test_used_run_folder_is_left_alone(run: Run, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(config.read_text())
    (folder / "metrics.jsonl").write_text("precious")
    code, text = run("train", config, "--run-dir", folder)
    assert code == 2
    one_line(text, "already used", "--resume auto")
    code, text = run("train", config, "--run-dir", folder, "--resume", "auto", "optim.lr=0.5")
    assert code == 2
    one_line(text, "another configuration", "optim.lr")
    code, text = run("train", config, "--run-dir", folder, "--resume", "must")
    assert code == 2
    one_line(text, "no complete checkpoint")
    assert (folder / "metrics.jsonl").read_text() == "precious"


def test_full_disk_is_said_before_anything_is_written(
    run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "LEAST_FREE_BYTES", 1 << 60)
    code, text = run("train", config, "--run-dir", tmp_path / "run")
    assert code == 2
    one_line(text, "free")
    assert not (tmp_path / "run").exists()


def test_corrupted_shard_is_exit_code_3_and_named(run: Run, config: Path, digits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits, copy)
    victim = copy / "train-00000.arrow"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    code, text = run("train", config, f"data.shards={copy}", "--run-dir", tmp_path / "run")
    assert code == 3
    one_line(text, "train-00000.arrow")
    code, _ = run("shards", "verify", copy)
    assert code == 3
    assert run("shards", "verify", digits)[0] == 0


def table(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_one_class_and_empty_split(run: Run, config: Path, tmp_path: Path) -> None:
    one_class = "path,label,split\n" + "".join(f"{i}.png,a,{'train' if i < 4 else 'val'}\n" for i in range(8))
    assert run("shards", "build", f"table:{table(tmp_path / 't', one_class)}", tmp_path / "one", "--size", "16")[0] == 0
    code, text = run("train", config, f"data.shards={tmp_path / 'one'}")
    assert code == 2
    one_line(text, "one class only")

    no_training = "path,label,split\n" + "".join(
        f"{i}.png,{'ab'[i % 2]},{'test' if i < 4 else 'val'}\n" for i in range(8)
    )
    assert (
        run("shards", "build", f"table:{table(tmp_path / 't', no_training)}", tmp_path / "two", "--size", "16")[0] == 0
    )
    code, text = run("train", config, f"data.shards={tmp_path / 'two'}")
    assert code == 2
    one_line(text, "'train'", "validation, test")


def test_wrong_tables_and_sources(run: Run, tmp_path: Path, digits: Path) -> None:
    labels = table(tmp_path / "t", "file,label\n0.png,a\n")
    code, text = run("shards", "build", f"table:{labels}", tmp_path / "out")
    assert code == 2
    one_line(text, "path", "file, label")
    labels = table(tmp_path / "t", "path,label\n0.png,nv\n1.png,mell\n")
    code, text = run("shards", "build", f"table:{labels}", tmp_path / "out", "classes=nv,mel")
    assert code == 2
    one_line(text, "unknown class 'mell'", "'mel'")
    overlap = "path,label,split,group\n0.png,a,train,p7\n1.png,b,train,p8\n2.png,a,test,p7\n3.png,b,test,p9\n"
    code, text = run("shards", "build", f"table:{table(tmp_path / 't', overlap)}", tmp_path / "out")
    assert code == 2
    one_line(text, "p7")
    assert not (tmp_path / "out").exists()
    wrong = (("tabel:x.csv", tmp_path / "out", "table"), ("folder:nowhere", tmp_path / "out", "nowhere"))
    for source, dest, part in (*wrong, ("digits", digits, "exists")):
        code, text = run("shards", "build", source, dest)
        assert code == 2
        one_line(text, part)


def test_no_run_there(run: Run, tmp_path: Path) -> None:
    for command in ("status", "report", "evaluate"):
        code, text = run(command, tmp_path / "nothing")
        assert code == 2
        one_line(text, "nothing")
    code, text = run("checkpoint", "hash", tmp_path / "nothing")
    assert code == 2
    one_line(text, "nothing")


def test_dry_run_under_torchrun_starts_nothing(
    run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "somebody's")
    assert run("train", config, "--dry-run", "--run-dir", tmp_path / "run")[0] == 0
    assert not (tmp_path / "run").exists()
