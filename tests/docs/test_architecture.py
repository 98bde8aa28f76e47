"""docs/architecture.md against the code: arrows of its picture, names of its walks, and its examples as written."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from cluster import index
from cluster.backend import Block, exact_distances
from cluster.controller import ControllerConfig, ControllerCore
from cluster.growth import Growth
from cluster.kmeans import kmeans
from cluster.plan import PlanConfig
from data_shards.build import build
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources import SOURCES
from launch import networks, objective
from launch.config import checked
from tests.docs.pages import FENCE, ROOT
from trainer.backbones.backbone import Backbone
from trainer.subspaces.partition import SubspacePartition

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
AGAIN = "draw it again: subspace bench architecture --out docs/images/architecture.svg"
PACKAGES = ("data_shards", "cluster", "trainer", "launch")
SEAM = re.compile(r"This\s+is\s+`([\w/]+)\.py`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"With the line `(.+),` in the table")

# -- the picture


def room(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).parent.parts)


def imported(module: Path) -> set[Path]:
    """Return the files of the packages that a file imports anywhere; `from a import b` is a/b.py if that is one."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            names = [f"{node.module}.{each.name}" for each in node.names]
        for name in names:
            found |= {path for path in [file_of(name) or file_of(name.rpartition(".")[0])] if path}
    return found - {module}


def file_of(name: str) -> Path | None:
    base = ROOT / name.replace(".", "/") if name.partition(".")[0] in PACKAGES else None
    candidates = [] if base is None else [base.with_suffix(".py"), base / "__init__.py"]
    return next((path for path in candidates if path.exists()), None)


@pytest.fixture(scope="module")
def edges() -> Counter[tuple[str, str]]:
    """Return the pairs of files between rooms, counted from the sources."""
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    pairs = [(room(module), room(other)) for module in modules for other in imported(module)]
    return Counter((one, other) for one, other in pairs if one != other)


def drawn(kind: str) -> dict[tuple[str, str], int]:
    found = [each for each in ElementTree.parse(PICTURE).iter() if each.get("data-kind") == kind]
    return {(each.attrib["data-from"], each.attrib["data-to"]): int(each.attrib["data-count"]) for each in found}


def folded(edges: Counter[tuple[str, str]], whole: bool) -> Counter[tuple[str, str]]:
    """Return the sums of edges to other storeys, from rooms or from whole storeys."""
    found: Counter[tuple[str, str]] = Counter()
    for (one, other), count in edges.items():
        source, target = one.partition(".")[0], other.partition(".")[0]
        if source != target:
            found[source if whole else one, target] += count
    return found


def test_the_arrows_are_the_imports(edges: Counter[tuple[str, str]]) -> None:
    within = {pair: n for pair, n in edges.items() if pair[0].partition(".")[0] == pair[1].partition(".")[0]}
    for kind, expected in {"rooms": within, "lower": folded(edges, False), "storeys": folded(edges, True)}.items():
        shown = drawn(kind)
        assert set(shown) == set(expected), AGAIN
        for pair, count in expected.items():  # numbers may lag a little behind; arrows may not
            assert abs(shown[pair] - count) <= max(2, 0.25 * count), f"{pair} is {count} now; {AGAIN}"


def test_no_arrow_leads_upwards() -> None:
    height = {"data_shards": 0, "cluster": 1, "trainer": 2, "launch": 3}
    assert all(height[one] > height[other] for one, other in drawn("storeys"))


def test_every_room_has_its_paragraph(edges: Counter[tuple[str, str]]) -> None:
    for name in {each for pair in edges for each in pair}:
        assert f"**`{name.replace('.', '/')}/`**" in PAGE


# -- the names


def defined(path: Path) -> set[str]:
    """Return the functions of a file and the methods of its classes, as Class.method."""

    def below(body: list[ast.stmt], before: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield before + node.name
            elif isinstance(node, ast.ClassDef):
                yield from below(node.body, f"{before}{node.name}.")

    return set(below(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def test_files_and_functions_of_the_page_exist() -> None:
    new = {name + ".py" for name, _ in SEAM.findall(PAGE)}
    current, checks = None, 0
    for token in re.findall(r"`([^`\n]+)`", FENCE.sub("", PAGE)):
        if re.fullmatch(r"[\w./]+\.py|[\w.]+(/[\w.]+)*/", token):
            assert token in new or (ROOT / token).exists(), token
            current = ROOT / token
        elif token.endswith("()"):
            assert current is not None
            assert token[:-2] in defined(current), f"{token} is not in {current.relative_to(ROOT)}"
            checks += 1
    assert checks > 50


def test_examples_are_of_files_that_are_not_there_yet() -> None:
    for name, _ in SEAM.findall(PAGE):
        assert not (ROOT / f"{name}.py").exists()
        assert (ROOT / name).parent.is_dir()


# -- the seams


@pytest.fixture
def seam(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes the example of a name into the module that it would be, and gives its line of the table."""

    def made(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        parts = PAGE.split("\n### ")
        part = next(each for each in parts if f"`{name}.py`" in each and SEAM.search(each))
        found = SEAM.search(part)
        assert found is not None
        module = types.ModuleType(name.replace("/", "."))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(found[2], f"{name}.py", "exec"), vars(module))
        line = LINE.search(part)
        return vars(module), {} if line is None else eval(f"{{{line[1]}}}", vars(module))

    return made


def settings(**sections: Any) -> Any:
    return checked({"data": {"shards": "x", "image_size": 32}, **sections}, "it")


def test_a_new_loss(seam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names, line = seam("trainer/losses/scatter")
    monkeypatch.setattr(objective, "LOSSES", objective.LOSSES | line)
    chosen = {"loss": {"name": "scatter_ratio", "power": 0.5}, "miner": {"name": "none"}}
    config = settings(objective=chosen, model={"num_dims": 8, "num_subspaces": 1})
    objective.check_names(config)
    torch.manual_seed(0)
    vectors, labels = torch.randn(16, 8, requires_grad=True), torch.arange(4).repeat(4)
    trained = objective.build_objective(config, 4)
    losses = []
    for step in range(20):
        (update,) = trained.updates(vectors, labels, SubspacePartition((8,)), 0, step)
        vectors.grad = None
        update.loss.backward()
        losses.append(float(update.loss.detach()))
        assert vectors.grad is not None
        assert vectors.grad.isfinite().all()
        vectors.data -= vectors.grad
    assert losses[-1] < losses[0]
    unit = vectors.detach() / vectors.detach().norm(dim=1, keepdim=True)
    mean = {c: unit[labels == c].mean(dim=0) for c in range(4)}
    within = sum(float((unit[i] - mean[int(labels[i])]).square().sum()) for i in range(16))
    total = sum(float((unit[i] - unit.mean(dim=0)).square().sum()) for i in range(16))
    torch.testing.assert_close(float(names["scatter_ratio"](unit, labels)), within / total, rtol=1e-5, atol=0)
    misspelt = settings(objective={"loss": {"name": "scatter_ratio", "powr": 2}, "miner": {"name": "none"}})
    with pytest.raises(UserError, match="power"):
        objective.check_names(misspelt)


@pytest.mark.parametrize("gate", [{"name": "none"}, {"name": "convolutions"}])
def test_a_new_backbone(seam: Any, monkeypatch: pytest.MonkeyPatch, gate: dict[str, str]) -> None:
    _, line = seam("trainer/backbones/halving")
    monkeypatch.setattr(networks, "BACKBONES", networks.BACKBONES | line)
    config = settings(model={"backbone": {"name": "halving", "width": 8}, "num_dims": 12, "gate": gate})
    networks.check(config)
    network = networks.model(config)
    assert isinstance(network.backbone, Backbone)
    images = torch.randn(2, 3, 32, 32)
    levels = network.backbone(images)
    for level, channels, stride in zip(levels, network.backbone.channels, network.backbone.strides, strict=True):
        assert level.shape == (2, channels, 32 // stride, 32 // stride)
    assert network(images).vectors.shape == (2, 12)
    assert network(images).vectors.isfinite().all()


def test_a_new_source(seam: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, line = seam("data_shards/sources/stripes")
    for name, entry in line.items():
        monkeypatch.setitem(SOURCES, name, entry)
    manifest = build("stripes", tmp_path / "stripes", options={"number": "24"})
    assert sum(sum(counts.values()) for counts in manifest.counts.values()) == 24
    train = open_shards(tmp_path / "stripes").split("train")
    for row in range(len(train)):
        image = train.image(row)[..., 0]
        upright = (image == image[:1]).all()  # all lines are alike
        assert train.classes[train.labels[row]] == ("upright" if upright else "level")


def test_a_new_growth_rule(seam: Any) -> None:
    names, _ = seam("cluster/periodic")
    core = ControllerCore(ControllerConfig(PlanConfig(num_epochs=9), (8,), names["PeriodicGrowth"](3)))
    core.begin(1)
    scores = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6]
    changes = []
    for epoch in range(6):
        core.plan(epoch, 1)
        changes.append(core.report(epoch, 1, {"nmi": 0.5}, scores))
    assert [epoch for epoch, change in enumerate(changes) if change is not None] == [2, 5]
    first, second = changes[2], changes[5]
    assert isinstance(first, Growth)
    assert isinstance(second, Growth)
    assert (first.widths, first.permutation) == ((4, 4), (1, 3, 5, 7, 0, 2, 4, 6))
    assert second.widths == (4, 2, 2)
    assert second.permutation[:4] == (0, 1, 2, 3)


def test_a_new_backend(seam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names, _ = seam("cluster/double")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(700, 12)).astype(np.float32)
    centroids = np.concatenate([features[:5], features[:2]])  # two of them tie with others, exactly
    backend = names["DoubleBackend"]()
    backend.prepare(centroids, index.row_norm_bound(features))
    block = Block(features, backend.load(features))
    backend.relabel(block, None, 0)
    distances = [exact_distances(features, np.broadcast_to(centre, features.shape)) for centre in centroids]
    np.testing.assert_array_equal(block.labels, np.argmin(distances, axis=0))
    expected = kmeans(features, 6, seed=1, backend="numpy")
    monkeypatch.setattr(index, "make_backend", lambda name, num_threads=1: names["DoubleBackend"]())
    found = kmeans(features, 6, seed=1, backend="numpy", num_shards=3)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
