"""The page: whole, self-contained, accessible, and still a page when parts of the run are missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from data_shards.errors import DataIntegrityError, UserError
from data_shards.info import info
from launch.report import write_report
from tests.launch.report.make_run import make_run

VOID = {"meta", "link", "img", "source", "br", "input"}
PLOTS = {"loss", "scores", "growth", "clusters", "stability", "confusion", "calibration", "pca", "tsne"}


class Page(HTMLParser):
    """Checks nesting while it collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(digit_run: Path) -> Page:
    return page_of(digit_run)


def test_every_section_and_plot_is_there(page: Page, digit_run: Path) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = {"results", "training", "growth", "clusters", "embedding", "neighbours", "attention", "reproduce"}
    assert wanted | {"galleries", "data"} < set(ids)
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)
    assert {p.stem for p in (digit_run / "plots").glob("*.png")} == PLOTS
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (digit_run / "plots").iterdir())


def test_the_page_needs_nothing_from_elsewhere(page: Page, digit_run: Path) -> None:
    text = (digit_run / "report.html").read_text(encoding="utf-8")
    assert not page.all("script")
    assert "url(" not in text
    assert "@import" not in text
    for tag, attrs in page.tags:
        address = attrs.get("src") or attrs.get("srcset") or (attrs.get("href") if tag == "link" else None)
        assert address is None or address.startswith("data:")


def test_pictures_have_words_and_figures_have_captions(page: Page, digit_run: Path) -> None:
    assert page.all("img")
    assert all(a.get("alt") for a in page.all("img"))
    text = (digit_run / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?</figure>", text, flags=re.S)
    assert len(figures) > 12
    assert all("<figcaption>" in f for f in figures)
    assert all(re.search(r"<caption>\s*\S", t) for t in re.findall(r"<table.*?</table>", text, flags=re.S))
    assert all(a.get("scope") for a in page.all("th"))


def test_numbers_are_those_of_the_files(page: Page, digit_run: Path) -> None:
    for split in ("validation", "test"):
        scores = json.loads((digit_run / "evaluation" / f"{split}.json").read_text())
        for value in (*scores["recall"].values(), scores["macro_recall_at_1"], scores["nmi"]["mean"]):
            assert f"{value:.3f}" in page.text
    recall = json.loads((digit_run / "evaluation/test.json").read_text())["recall"]["1"]
    assert f"{100 * recall:.1f} % have a nearest neighbour of their own class" in page.text
    assert "An embedding of 32 dimensions in 3 subspaces, grown in 2 splits." in page.text
    assert "S1 (32)" in page.text
    assert "subspace train 'configs/a b.yaml'" in page.text
    assert "torch 2.13.0" in page.text
    assert "S2 (8) + S3 (11)" in page.text


def test_panels_mark_right_and_wrong_by_more_than_colour(page: Page, digit_run: Path) -> None:
    text = (digit_run / "report.html").read_text(encoding="utf-8")
    hits = re.findall(r'<li class="(right|wrong)">\s*<img src="[^"]*" alt="(Right|Wrong): \d, distance [\d.]+">', text)
    assert len(hits) >= 8 * 4
    assert {h[0] for h in hits} == {"right", "wrong"}
    assert all(h[0] == h[1].lower() for h in hits)
    panels = re.findall(r'<li class="panel">.*?alt="Query, (\d)".*?<ol>(.*?)</ol>', text, flags=re.S)
    for query, items in panels:
        found = re.findall(r'alt="(Right|Wrong): (\d), distance ([\d.]+)"', items)
        assert all((kind == "Right") == (name == query) for kind, name, _ in found)
        assert [float(d) for *_, d in found] == sorted(float(d) for *_, d in found)


def test_writing_again_gives_the_same_bytes(page: Page, digit_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / digit_run.name
    shutil.copytree(digit_run, copy)
    assert write_report(copy).read_bytes() == (digit_run / "report.html").read_bytes()


def test_one_subspace_without_test_split_maps_or_shards(tmp_path: Path) -> None:
    run = make_run(tmp_path / "plain", num_epochs=3, splits=("validation",), maps=False)
    found = page_of(run)
    ids = {a.get("id") for _, a in found.tags}
    assert {"results", "training", "embedding", "reproduce"} < ids
    assert not {"growth", "clusters", "neighbours", "galleries", "attention", "data"} & ids
    assert "Pictures are left out: the shard folder missing-shards is not here." in found.text
    assert "An embedding of 32 dimensions in 1 subspace." in found.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "running", "epoch": 0, "step": 0}')
    found = page_of(tmp_path)
    assert "No split has been evaluated yet." in found.text
    assert "its state is running" in found.text


def test_a_run_without_labels_has_a_page_without_retrieval(tmp_path: Path) -> None:
    run = tmp_path / "pretext"
    (run / "evaluation").mkdir(parents=True)
    (run / "config.yaml").write_text("name: pretext\ngrowth: {monitor: loss}\n")
    (run / "status.json").write_text('{"state": "completed", "num_subspaces": 1}')
    losses = [{"epoch": e, "validation": {"num_samples": 8, "loss": 3.0 - e}} for e in range(2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    (run / "evaluation" / "test.json").write_text('{"split": "test", "num_samples": 8, "loss": 14.003}')
    text = page_of(run).text
    for part in (
        "On 8 test images the loss, without labels, is 14.003.",
        "best loss, 2.000, after epoch 2",
        "test: 8 images.",
    ):
        assert part in text
    for part in ("leave-one-out", "subspace.", "classes"):
        assert part not in text


def test_scores_without_vectors_and_cut_lines_are_enough(digit_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "cut"
    shutil.copytree(digit_run, run)
    for path in (run / "evaluation").glob("*.safetensors"):
        path.unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 9, "step": 1')
    assert "embedding" not in {a.get("id") for _, a in page_of(run).tags}


def test_words_of_the_user_are_escaped(digit_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "escaped"
    shutil.copytree(digit_run, run)
    config = (run / "config.yaml").read_text().replace("name: digits", 'name: "<script>alert(1)</script>"')
    (run / "config.yaml").write_text(config)
    for path in (run / "evaluation").glob("*.safetensors"):
        path.unlink()  # maps take seconds, and have no words of the user
    found = page_of(run)
    assert not found.all("script")
    assert "<script>alert(1)</script>" in found.text


def test_damage_is_named(digit_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    run = tmp_path / "damaged"
    shutil.copytree(digit_run, run)
    tensors = load_file(run / "evaluation/test.safetensors")
    del tensors["neighbours"]
    save_file(tensors, run / "evaluation/test.safetensors")
    with pytest.raises(DataIntegrityError, match=r"test.safetensors lacks neighbours"):
        write_report(run)
    (run / "evaluation/test.json").write_text("{")
    with pytest.raises(DataIntegrityError, match=r"test.json is damaged"):
        write_report(run)


def test_many_classes_get_a_histogram_instead_of_a_matrix(digit_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "many"
    shutil.copytree(digit_run, run)
    tensors = load_file(run / "evaluation/test.safetensors")
    tensors["labels"] = tensors["labels"] * 10 + np.arange(len(tensors["labels"])) % 3  # thirty classes
    save_file(tensors, run / "evaluation/test.safetensors")
    found = page_of(run)
    assert any("Histogram of the recall@1" in (a.get("alt") or "") for a in found.all("img"))
    assert "20 other classes" in found.text


def test_a_collapsed_embedding_is_told(digit_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "collapsed"
    shutil.copytree(digit_run, run)
    tensors = load_file(run / "evaluation/test.safetensors")
    tensors["vectors"] = np.ones_like(tensors["vectors"])
    save_file(tensors, run / "evaluation/test.safetensors")
    assert "The embedding has collapsed." in page_of(run).text


def test_growth_after_the_kept_epoch_is_told(digit_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "further"
    shutil.copytree(digit_run, run)
    for path in (run / "evaluation").glob("*.safetensors"):
        path.unlink()
    for path in (run / "evaluation").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"widths": [13, 19], "per_subspace": []}))
    found = page_of(run)
    assert "An embedding of 32 dimensions in 2 subspaces, grown in 1 split." in found.text
    assert "Training went on to 3 subspaces, but validation was best after epoch" in found.text


def test_data_card_and_settings_are_of_the_files(digit_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "started" / "run"
    shutil.copytree(digit_run, run)
    for path in (run / "evaluation").glob("*.safetensors"):
        path.unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(config | {"seed": 99}))
    (run / "env.json").write_text(json.dumps({"command": ["subspace", "train", "preset.yaml", "seed=7"]}))
    found = page_of(run)
    assert "Settings that are not those of preset.yaml" in found.text
    assert "seed 99 7" in found.text
    counts = info(Path(config["data"]["shards"]))
    assert f"all images {' '.join(f'{n:,}' for n in counts['num_images'].values())}" in found.text
    assert "No image was rejected" in found.text
