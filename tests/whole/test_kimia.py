"""Kimia Path24 from the disk to eta_total, in miniature: both layouts, built, trained by the published recipe, scored.

Every scan has a texture of its own, stripes of one direction and width, so that a network can learn to tell them apart.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs import ROOT, subspace

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.slow

SIDE, NUM_SCANS, NUM_TEST = 40, 24, 3


def texture(scan: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return stripes (height, width) uint8 whose direction and width are the scan's, with noise."""
    angle, period = np.pi * (scan % 8) / 8, (5, 8, 13)[scan // 8]
    y, x = np.mgrid[:height, :width]
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 2 * np.pi))
    return (120 + 60 * wave + rng.normal(0, 20, wave.shape)).clip(0, 214).astype(np.uint8)


def released(root: Path) -> str:
    """Write the colour patches as released; return the source."""
    rng = np.random.default_rng(0)
    for part, count in (("Training", 14), ("RGBPatches-test", NUM_TEST)):
        for scan in range(NUM_SCANS):
            folder = root / "KIMIAPath24_RGB" / part / f"s{scan}"
            folder.mkdir(parents=True)
            for number in range(count):
                gray = texture(scan, SIDE, SIDE, rng)
                Image.fromarray(np.stack([gray, gray // 2, gray], axis=2)).save(folder / f"{number}.jpg", quality=95)
    return f"kimia_path24:{root / 'KIMIAPath24_RGB'}"


def scans(root: Path) -> str:
    """Write the file of scans, test patches whitened; return the source."""
    rng, patches, targets = np.random.default_rng(1), [], []
    with h5py.File(root / "Kimia_Path24.h5", "w") as file:
        for scan in range(NUM_SCANS):
            tissue = texture(scan, 5 * SIDE, 5 * SIDE, rng)
            for top, left in ((0, 0), (2 * SIDE, SIDE), (3 * SIDE, 4 * SIDE)):
                square = tissue[top : top + SIDE, left : left + SIDE]
                patches.append(square.copy())
                targets.append(scan)
                square[:] = 255
            file[f"scan{scan}/data"], file[f"scan{scan}/thumbnail"] = tissue, tissue[::8, ::8]
        file["test_data/patches"], file["test_data/targets"] = np.stack(patches), np.array(targets)
    return f"kimia_path24:{root / 'Kimia_Path24.h5'}"


SMALL = (
    "model.backbone={name: small_resnet, widths: [8, 16, 32], norm: batch, se: true}",
    "model.num_dims=32",
    "data.image_size=32",
    "data.resize=36",
    "data.num_workers=0",
    "data.augment.crop_scale=[0.8, 0.8]",
    "data.augment.hflip=false",  # would turn one scan's stripes into another's
    "data.augment.vflip=false",
    "train.epochs=4",
    "train.steps_per_epoch=25",
    "optim.lr=0.2",
    "optim.milestones=[3]",
    "cluster.backend=local",
    "evaluate.nmi_seeds=2",
)


@pytest.mark.parametrize("layout", [released, scans])
def test_from_the_publishers_files_to_eta_total(tmp_path: Path, layout: object) -> None:
    gray = layout is scans
    source = layout(tmp_path)  # type: ignore[operator]
    options = ["validation=0.3", *(["patch=40"] if gray else [])]
    built = subspace("shards", "build", source, tmp_path / "shards", "--size", "36", *options)
    assert built.returncode == 0, built.stderr
    form = ("data.channels=1", "data.mean=[0.0]", "data.std=[1.0]") if gray else ()
    config = ROOT / "configs" / "histology" / "kimia_mixed_attention.yaml"
    run = tmp_path / "run"
    done = subspace("train", config, f"data.shards={tmp_path / 'shards'}", *SMALL, *form, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    test = json.loads((run / "evaluation" / "test.json").read_text())
    assert (test["num_samples"], test["num_classes"]) == (NUM_TEST * NUM_SCANS, NUM_SCANS)
    found = {each["gallery"]: each for each in test["protocols"]}
    assert set(found) == {"leave_one_out", "train"}
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert found["train"]["num_gallery"] == sum(manifest["counts"]["train"].values())
    for scores in found.values():
        eta = scores["scans"]
        assert eta["eta_p"] == pytest.approx(scores["recall"]["1"])
        assert eta["eta_w"] == pytest.approx(eta["eta_p"])  # as many patches of every scan
        assert eta["eta_total"] == pytest.approx(eta["eta_p"] * eta["eta_w"])
    assert found["train"]["scans"]["eta_total"] > 0.5  # by chance 1 / 24 squared
    assert "eta" in done.stdout.lower() or "η" in done.stdout
