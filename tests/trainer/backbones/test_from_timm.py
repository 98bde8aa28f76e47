"""timm's networks, by a stand-in that is shaped like timm; by timm itself where it is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from data_shards.errors import UserError
from tests.runs import ROOT, environment
from trainer.backbones.from_timm import by_name
from trainer.weights import best_match, fitted


class BatchNormAct2d(nn.BatchNorm2d):
    """A norm with an activation inside, under the names of a norm alone."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class Network(nn.ModuleDict):
    """What `features_only` leaves of a network with `conv_stem`, `stages.0`, `stages.1` and, if asked, oddities."""

    def __init__(self, in_chans: int, out_indices: tuple[int, ...] = (0, 1), odd: str = "") -> None:
        super().__init__()
        self["conv_stem"] = nn.Conv2d(in_chans, 4, 3, 2, 1)
        for i in range(max(out_indices) + 1):
            self[f"stages_{i}"] = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, bias=False), BatchNormAct2d(4))
        if odd == "idle":
            self["stages_9"] = nn.Linear(4, 4)
        if odd == "positions":
            self.position = nn.Parameter(torch.randn(4, 1, 1))
        self.odd, self.out_indices = odd, out_indices
        self.feature_info = SimpleNamespace(
            channels=lambda: [4 for _ in out_indices],
            reduction=lambda: [4 * 2**i for i in out_indices],
            module_name=lambda: [f"stages.{i}" for i in out_indices],
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self["conv_stem"](x)
        x = x + self.position if self.odd == "positions" else x
        found = []
        for i in range(max(self.out_indices) + 1):
            x = self[f"stages_{i}"](x)
            found.append(x)
        return [x.flatten(2) for x in found] if self.odd == "flat" else [found[i] for i in self.out_indices]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    timm = ModuleType("timm")
    timm.list_models = lambda: ["convnet", "idle", "positions", "flat"]  # type: ignore[attr-defined]

    def create_model(
        name: str, pretrained: bool, features_only: bool, in_chans: int, out_indices: tuple[int, ...] = (0, 1)
    ) -> Network:
        assert features_only and not pretrained
        if max(out_indices) > 1:
            raise IndexError("list index out of range")
        return Network(in_chans, out_indices, "" if name == "convnet" else name)

    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    return timm


def test_levels_norms_and_start() -> None:
    nets = [by_name("convnet")(in_channels=1, norm="group", seed=1) for _ in range(2)]
    first = nets[0]
    assert (first.channels, first.strides) == ((4, 4), (4, 8))
    assert [tuple(level.shape) for level in first(torch.randn(2, 1, 32, 32))] == [(2, 4, 8, 8), (2, 4, 4, 4)]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in first.modules())
    assert (first(torch.randn(2, 1, 32, 32))[-1] >= 0).all(), "the activation inside the norm is gone"
    assert all(torch.equal(value, nets[1].state_dict()[name]) for name, value in first.state_dict().items())
    shallow = by_name("convnet")(levels=1, in_channels=1, norm="group", seed=1)
    assert shallow.channels == (4,)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in shallow.state_dict().items())


def test_a_file_of_the_whole_network_fits_by_the_names_before_it_was_cut() -> None:
    torch.manual_seed(3)
    state = {name.replace("stages_", "stages."): value + 1 for name, value in Network(3).state_dict().items()}
    net = by_name("convnet")(levels=1)
    net.load_state_dict(fitted(net, {**state, "head.fc.weight": torch.ones(1)}, best_match(net, state)), strict=False)
    assert torch.equal(net.net["stages_0"][0].weight, state["stages.0.0.weight"])
    assert torch.equal(net.net["conv_stem"].bias, state["conv_stem.bias"])
    with pytest.raises(UserError, match=r"'stages\.0\.7\.weight' has no place"):
        fitted(net, {**state, "stages.0.7.weight": torch.ones(1)}, best_match(net, state))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("idle", r"'stages_9\.weight' has no part in its last level"),
        ("positions", r"'position' is of no convolution, linear layer or norm"),
        ("flat", "no maps"),
    ],
)
def test_networks_that_do_not_fit_are_refused(model: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"timm's {model} cannot be used: .*{reason}"):
        by_name(model)()


def test_unknown_names_and_levels() -> None:
    with pytest.raises(UserError, match=r"no network 'convent' of timm.*'convnet'"):
        by_name("convent")
    with pytest.raises(UserError, match="gives no 3 levels"):
        by_name("convnet")(levels=3)


def test_timm_that_is_not_there_or_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'subspace-trainer\[timm\]'"):
        by_name("resnet50")

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr("trainer.backbones.from_timm.import_module", broken)
    with pytest.raises(UserError, match=r"\(RuntimeError: operator torchvision::nms does not exist\).* fits torch 2"):
        by_name("resnet50")


SHIM = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
REAL = """
import timm, torch
from trainer.backbones.from_timm import by_name
from trainer.weights import best_match, fitted
images = torch.randn(2, 3, 64, 64)
for name in ("resnet50", "densenet121", "efficientnet_b0", "convnext_atto"):
    theirs, ours = timm.create_model(name).eval(), by_name(name)()
    state = theirs.state_dict()
    ours.load_state_dict(fitted(ours, state, best_match(ours, state)), strict=False)
    found = ours.eval()(images)
    assert [level.shape[1] for level in found] == list(ours.channels), name
    assert [64 // level.shape[2] for level in found] == list(ours.strides), name
    ours.train()(images)[-1].square().mean().backward()
    assert all(p.grad is not None for p in ours.parameters()), name
    if name != "efficientnet_b0":  # whose features end before its last convolution
        torch.testing.assert_close(found[-1].relu(), theirs.forward_features(images).relu(), rtol=1e-4, atol=1e-4)
"""


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_timm_itself() -> None:
    """Where torchvision was built for another torch, two operators are declared for it first."""
    for code in (REAL, SHIM + REAL):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
        if done.returncode == 0 or "torchvision::nms" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
