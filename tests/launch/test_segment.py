"""`subspace segment` and `subspace explain`: whole paths on phantoms, and what they refuse."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.build import build
from data_shards.reader import SplitReader, open_shards
from launch.explain import compare
from launch.seen import Seen
from launch.trained import alone, config_of, load
from tests.launch.best_run import best_run, classifier
from trainer.segmentation.grad_cam import similarities

Cli = Callable[..., tuple[int, str, str]]
SIZE, NUM_CLASSES = 32, 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantoms"
    build("phantoms", folder, size=SIZE, options={"num_samples": 40, "label_by": "colour", "levels": NUM_CLASSES})
    return folder


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    return best_run(tmp_path / "run", shards, SIZE)


@pytest.fixture
def baseline(tmp_path: Path, shards: Path) -> Path:
    head = {"gate": {"name": "none"}}
    return best_run(tmp_path / "classes", shards, SIZE, classifier(NUM_CLASSES), model=head)


def one_line(answer: tuple[int, str, str], *parts: str) -> None:
    code, out, err = answer
    assert code == 2, err
    assert len(err.splitlines()) == 1
    assert all(part in err for part in parts), err
    assert not out


@pytest.mark.slow
def test_a_network_of_pixels_is_scored_by_its_first_cluster(shards: Path, cli: Cli, tmp_path: Path) -> None:
    model = {
        "backbone": {"name": "vgg16", "norm": "group"},
        "gate": {"name": "none"},
        "head": {"name": "dense", "grid": 4, "width": 8, "num_clusters": 3},
        "num_subspaces": 1,
    }
    kind = {"objective": {"local": {}}, "growth": {"enabled": False, "monitor": "loss"}, "evaluate": {"by": "loss"}}
    run = best_run(tmp_path / "pixels", shards, SIZE, model=model, **kind)
    code, out, err = cli("segment", run, "--unet", "--unet-epochs", "1", "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert list(scores["methods"])[:3] == ["cluster", "cluster_cut", "region"]
    assert scores["methods"]["cluster"]["threshold"] == 0.5 and not scores["methods"]["cluster"]["threshold_chosen"]
    assert scores["methods"]["cluster_cut"]["threshold_chosen"]
    assert "cluster - green_level" in scores["dice_differences"]
    code, out, err = cli("segment", run, "--unet", "--unet-epochs", "1", "--size", "48", "--lit", "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert (scores["image_size"], scores["only_lit"]) == (48, True)
    one_line(cli("segment", run, "--size", "8"), "--size must be 16 to 4096")


def test_the_whole_path(run: Path, baseline: Path, shards: Path, cli: Cli) -> None:
    words = ("segment", run, "--baseline", baseline, "--unet", "--unet-baseline", "--ceiling", "--unet-epochs", "1")
    code, out, err = cli(*words, "--json")
    assert code == 0, err
    scores = json.loads(out)
    folder = run / "segmentation"
    assert {path.name for path in folder.iterdir()} == {
        "scores.json", "per_image.csv", "overlays.png", "dice.png", "index.html"
    }  # fmt: skip
    assert scores == json.loads((folder / "scores.json").read_text())
    learnt = ["attention", "grad_cam", "unet_attention", "unet_grad_cam", "unet_supervised"]
    assert list(scores["methods"]) == [*learnt, "everything", "grey_level", "green_level", "otsu"]
    test = open_shards(shards).split("test")
    assert scores["scored_on"] == {"images": "test", "num_images": len(test)}
    assert scores["thresholds_from"]["images"] == "validation"
    assert scores["without_mask"] == {"validation": 0, "test": 0}
    assert scores["epoch"] == 3
    rows = list(csv.DictReader((folder / "per_image.csv").open()))
    assert len(rows) == len(scores["methods"]) * len(test)
    for name, found in scores["methods"].items():
        own = [row for row in rows if row["method"] == name]
        assert [int(row["sample_id"]) for row in own] == test.sample_ids.tolist()
        for score in ("dice", "iou"):
            values = [float(row[score]) for row in own]
            assert found[score]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
            assert found[score]["std"] == pytest.approx(np.std(values), abs=1e-6)
            assert found[score]["median"] == pytest.approx(np.median(values), abs=1e-6)
            assert found[score]["ci95"][0] <= found[score]["mean"] <= found[score]["ci95"][1]
    dice = {name: found["dice"]["mean"] for name, found in scores["methods"].items()}
    gain = scores["dice_differences"]["attention - grad_cam"]
    assert gain["mean"] == pytest.approx(dice["attention"] - dice["grad_cam"])
    assert scores["methods"]["everything"]["dice"]["mean"] == pytest.approx(
        np.mean([2 * m / (1 + m) for m in ((test.mask(i) > 0).mean() for i in range(len(test)))])
    )
    page = (folder / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert cli(*words)[0] == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_masks_of_the_training_split_are_not_read(
    run: Path, baseline: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, mask = set(), SplitReader.mask

    def recording(self: SplitReader, row: int) -> object:
        read.add(self.name)
        return mask(self, row)

    monkeypatch.setattr(SplitReader, "mask", recording)
    code, out, err = cli("segment", run, "--unet", "--unet-epochs", "1", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert read == {"validation", "test"}
    assert json.loads(out)["unet"]["num_images"] == {"unet_attention": len(open_shards_train(run))}
    assert cli("segment", run, "--ceiling", "--unet-epochs", "1", "--out", tmp_path / "out")[0] == 0
    assert "train" in read


def open_shards_train(run: Path) -> SplitReader:
    return open_shards(config_of(run).data.shards).split("train")


def test_without_masks_it_is_one_sentence(tmp_path: Path, digits: Path, cli: Cli) -> None:
    data = {"shards": str(digits), "image_size": 16, "channels": 1, "mean": [0.3], "std": [0.3]}
    made = best_run(tmp_path / "digits", digits, 16, data=data)
    one_line(cli("segment", made), "holds no masks", "column 'mask'")
    assert not (made / "segmentation").exists()


def test_baselines_that_cannot_be_compared(run: Path, tmp_path: Path, shards: Path, digits: Path, cli: Cli) -> None:
    one_line(cli("segment", run, "--baseline", run), "is not a classification run", "loss/0/weight")
    three = best_run(tmp_path / "three", shards, SIZE, classifier(3))
    one_line(cli("segment", run, "--baseline", three), "no linear classifier of 2 classes")
    larger = best_run(tmp_path / "larger", shards, 40, classifier(NUM_CLASSES))
    one_line(cli("segment", run, "--baseline", larger), "data.image_size is 40", "and 32")
    data = {"shards": str(digits), "image_size": SIZE, "channels": 1, "mean": [0.3], "std": [0.3]}
    other = best_run(tmp_path / "other", digits, SIZE, classifier(10), data=data)
    one_line(cli("segment", run, "--baseline", other), "trained on other shards")
    one_line(cli("segment", run, "--unet-baseline"), "--unet-baseline needs --baseline")
    one_line(cli("segment", run, "--unet-epochs", "0"), "--unet-epochs must be 1 or more")
    one_line(cli("segment", tmp_path), "not a run folder")


def test_a_run_without_attention_has_no_maps(baseline: Path, cli: Cli) -> None:
    one_line(cli("segment", baseline), "no attention maps")


# -- explain


def explained(cli: Cli, run: Path, query: object, match: object, out: Path, *more: str) -> list[tuple[str, float]]:
    code, text, err = cli("explain", run, "--query", str(query), "--match", str(match), "--out", out, *more)
    assert code == 0, err
    return [(line.split(": ")[0], float(line.split(": ")[1])) for line in text.splitlines()]


def test_two_images_are_explained_by_id_or_file(run: Path, shards: Path, cli: Cli, tmp_path: Path) -> None:
    reader = open_shards(shards).split("test")
    one, other = reader.sample_ids[:2].tolist()
    out = tmp_path / "picture.png"
    by_id = explained(cli, run, one, other, out, "--split", "test")
    assert [name for name, _ in by_id] == ["whole", "S1", "S2"]
    assert by_id[0][1] == pytest.approx((by_id[1][1] + by_id[2][1]) / 2, abs=2e-3)
    width, height = Image.open(out).size
    assert height > width
    before = out.read_bytes()
    Image.fromarray(reader.image(1)).save(tmp_path / "other.png")
    assert explained(cli, run, one, tmp_path / "other.png", out, "--split", "test") == by_id
    assert explained(cli, run, one, other, out, "--split", "test", "--hold-norms") == by_id
    assert out.read_bytes() != before


def test_files_get_the_size_of_the_shards(run: Path, shards: Path, cli: Cli, tmp_path: Path) -> None:
    """A picture of three times the size, with borders that the shards' centre crop takes away, is nearly the same."""
    reader = open_shards(shards).split("validation")
    image = Image.fromarray(reader.image(0)).resize((3 * SIZE, 3 * SIZE), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (5 * SIZE, 3 * SIZE), "green")
    wide.paste(image, (SIZE, 0))
    wide.save(tmp_path / "wide.png")
    found = explained(cli, run, reader.sample_ids[0], tmp_path / "wide.png", tmp_path / "out.png")
    assert all(cosine > 0.98 for _, cosine in found)


def test_maps_of_a_pair_are_on_their_own_images(run: Path, shards: Path) -> None:
    reader = open_shards(shards).split("test")
    box = (0.0, 0.0, float(SIZE), float(SIZE))
    query, match = (Seen(reader.image(row), str(row), box) for row in (0, 1))
    config = config_of(run)
    from launch.build import transform

    with alone(config):
        found = load(run, config)
        there = compare(found, transform(config), query, match, hold_norms=False)
        back = compare(found, transform(config), match, query, hold_norms=False)
    for one, other in zip(there, back, strict=True):
        assert one.cosine == pytest.approx(other.cosine, abs=1e-6)
        np.testing.assert_allclose(one.on_query, other.on_match, atol=1e-6)
        np.testing.assert_allclose(one.on_match, other.on_query, atol=1e-6)
        assert one.on_query.shape == (16, 16)


def test_what_cannot_be_explained(run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    out = ("--out", tmp_path / "out.png")
    one_line(cli("explain", run, "--query", "99999", "--match", "1", *out), "no image with the sample id 99999")
    one_line(cli("explain", run, "--query", "9" * 30, "--match", "1", *out), "no image with the sample id")
    one_line(cli("explain", run, "--query", tmp_path / "none.png", "--match", "1", *out), "none.png", "cannot be read")
    one_line(cli("explain", run, "--query", tmp_path / "text.png", "--match", "1", *out), "text.png", "not a JPEG")
    one_line(cli("explain", tmp_path, "--query", "1", "--match", "1", *out), "not a run folder")
    sample = str(open_shards(config_of(run).data.shards).split("validation").sample_ids[0])
    nowhere = ("--query", sample, "--match", sample, "--out", tmp_path / "no" / "out.png")
    one_line(cli("explain", run, *nowhere), "cannot write")


def test_the_averaged_weights_are_looked_at(tmp_path: Path, shards: Path) -> None:
    made = best_run(tmp_path / "run", shards, SIZE, train={"average_weights": 0.9})
    config = config_of(made)
    with alone(config):
        found = load(made, config)
    assert not found.network.training
    name = "head.embedding.weight"
    own = found.network.state_dict()[name]
    torch.testing.assert_close(own + 1, found.tensors[f"model/{name}"])
    assert (found.epoch, found.partition.widths) == (3, (3, 3))
    assert similarities(found.partition, own.T[:2], own.T[:2]).shape == (2, 3)
