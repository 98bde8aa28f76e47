"""MONAI's networks: their levels and sizes, equal to ours and to MONAI's own, files of other libraries, one step."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_shards.errors import UserError
from data_shards.samplers import batch_slice
from tests.ranks import run_on_ranks
from tests.runs import ROOT, environment
from trainer import distributed
from trainer.backbones.from_monai import MODELS, by_name
from trainer.backbones.resnet import ResNet
from trainer.engines.ddp import DDPEngine
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.losses.margin import margin_loss
from trainer.miners import all_triplets
from trainer.model import EmbeddingModel
from trainer.weights import best_match, fitted

ONE_OF_A_FAMILY = ("resnet18", "densenet121", "seresnext50", "efficientnet-b0")
# Parameters less the classifier: torchvision's densenets (7,978,856 - 1,025,000 and so on), the tables of the SENet
# authors' models, and EfficientNet-B0 and B4 also less the last 1x1 convolution and its norm.
SIZES = {
    "resnet18": 11_689_512 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "densenet121": 7_978_856 - 1_025_000,
    "densenet169": 14_149_480 - 1_665_000,
    "densenet201": 20_013_928 - 1_921_000,
    "seresnet50": 28_088_024 - 2_049_000,
    "seresnext50": 27_559_896 - 2_049_000,
    "efficientnet-b0": 5_288_548 - 1_281_000 - 320 * 1280 - 2 * 1280,
    "efficientnet-b4": 19_341_616 - 1_793_000 - 448 * 1792 - 2 * 1792,
}


@functools.cache
def built(model: str, **arguments: object) -> nn.Module:
    """A network that tests only read."""
    return by_name(model)(**arguments)


@pytest.mark.parametrize("model", SIZES)
def test_sizes_are_the_published_ones(model: str) -> None:
    assert sum(p.numel() for p in built(model, norm="batch").parameters()) == SIZES[model]


@pytest.mark.parametrize("model", ONE_OF_A_FAMILY)
@pytest.mark.parametrize("levels", [1, 3, None])
def test_levels_are_what_it_declares_down_to_the_smallest_image(model: str, levels: int | None) -> None:
    net = by_name(model)(levels=levels, in_channels=1, norm="group")
    assert len(net.channels) == levels or len(MODELS[model].levels)
    for size in (net.smallest_px, 96):
        found = net(torch.randn(2, 1, size, size))
        expected = [(2, c, size // s, size // s) for c, s in zip(net.channels, net.strides, strict=True)]
        assert [tuple(level.shape) for level in found] == expected


def test_unknown_names_and_numbers_of_levels() -> None:
    with pytest.raises(UserError, match=r"did you mean 'densenet121'.*there are resnet18, .*efficientnet-b4"):
        by_name("densenet122")
    with pytest.raises(UserError, match="resnet18 has 1 to 4 levels; got 5"):
        by_name("resnet18")(levels=5)
    with pytest.raises(UserError, match="Unknown norm"):
        by_name("resnet18")(norm="layer")


def test_nothing_imports_monai_before_one_is_built() -> None:
    code = "import sys, launch.networks as n; n.from_monai.by_name('resnet50'); sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), cwd=ROOT)


def with_statistics(net: nn.Module) -> dict[str, Tensor]:
    """Numbers as from pretraining, for every tensor."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator) * 0.5 + 0.5
        if value.ndim == 1
        else torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        if value.ndim > 1
        else value
        for name, value in net.state_dict().items()
    }


def start(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    net.load_state_dict(fitted(net, state, best_match(net, state)), strict=False)
    return net


def assert_levels_agree(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(("model", "depth"), [("resnet18", 18), ("resnet50", 50)])
def test_golden_a_file_for_our_resnet_gives_the_same_levels(model: str, depth: int) -> None:
    """Names are torchvision's in both; the last stage is not used when three levels are asked for."""
    ours = ResNet(depth, stages=4)
    state = with_statistics(ours)
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = ours(images)
        assert_levels_agree(start(by_name(model)(seed=1), state)(images), expected)
        assert_levels_agree(start(by_name(model)(levels=3, seed=1), state)(images), expected[:3])


def monais_own(model: str, pretrained: bool = False) -> nn.Module:
    from monai.networks import nets

    torch.manual_seed(0)
    if model.startswith("efficientnet"):
        return nets.EfficientNetBN(model, pretrained=pretrained, spatial_dims=2, in_channels=3)
    more = {"out_channels": 1000} if model.startswith("dense") else {}
    return getattr(nets, model)(spatial_dims=2, in_channels=3, pretrained=pretrained, **more)


def monais_levels(model: str, net: nn.Module, images: Tensor) -> list[Tensor]:
    """The last level (all of them for EfficientNets, where MONAI has taps) by MONAI's own forward pass."""
    if model.startswith("efficientnet"):
        from monai.networks.nets import EfficientNetBNFeatures

        return EfficientNetBNFeatures.forward(net, images)
    return [net.features(images).relu()]


@pytest.mark.parametrize("model", ["densenet121", "seresnet50", "seresnext50", "efficientnet-b0", "efficientnet-b3"])
def test_a_file_of_monai_gives_the_levels_of_monai(model: str) -> None:
    theirs = monais_own(model).eval()
    state = with_statistics(theirs)
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = monais_levels(model, theirs, images)
        found = start(by_name(model)(), state)(images)
        assert_levels_agree(found[-len(expected) :], expected)


def cadene(name: str) -> str:
    """MONAI's name of a SENet's tensor -> that of the published file."""
    for ours, theirs in (("se_layer.fc.0", "se_module.fc1"), ("se_layer.fc.2", "se_module.fc2")):
        name = name.replace(ours, theirs)
    name = name.replace("project.conv", "downsample.0").replace("project.adn.N", "downsample.1")
    for i in "123":
        name = name.replace(f"conv{i}.adn.N", f"bn{i}").replace(f"conv{i}.conv", f"conv{i}")
    return name


def lukemelas(name: str) -> str:
    """MONAI's name of an EfficientNet's tensor -> that of the published file, whose blocks are numbered through."""
    first, *rest = name.split(".")
    return ".".join([first, *rest[1:]]) if first == "_blocks" else name


PUBLISHED: list[tuple[str, Callable[[str], str]]] = [
    ("densenet121", lambda name: name.replace(".layers.", ".")),
    ("densenet121", lambda name: name.replace(".layers.norm", ".norm.").replace(".layers.conv", ".conv.")),
    ("densenet121", lambda name: "module." + name.removeprefix("features.").replace(".layers.", ".")),
    ("seresnet50", cadene),
    ("efficientnet-b0", lukemelas),
]


def published_file(model: str, published: Callable[[str], str]) -> dict[str, Tensor]:
    """A file as its authors would have written it."""
    state = {published(name): value for name, value in with_statistics(monais_own(model)).items()}
    if published is cadene:  # there a 1x1 convolution excites
        state = {name: v[:, :, None, None] if "se_module" in name and v.ndim == 2 else v for name, v in state.items()}
    return state


@pytest.mark.parametrize(("model", "published"), PUBLISHED)
def test_published_files_of_other_libraries_fit(model: str, published: Callable[[str], str]) -> None:
    expected, file = with_statistics(monais_own(model)), published_file(model, published)
    assert len(file) == len(expected)
    found = start(by_name(model)(levels=3), file).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("model", "published", "reader"),
    [
        ("densenet121", PUBLISHED[1][1], "densenet.load_state_dict_from_url"),
        ("seresnet50", cadene, "senet.load_state_dict_from_url"),
        ("efficientnet-b0", lukemelas, "efficientnet.model_zoo.load_url"),
    ],
)
def test_published_names_are_those_that_monai_reads(
    model: str, published: Callable[[str], str], reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's own way to read what it would download, as the oracle for the names that these tests give the files."""
    expected, file = with_statistics(monais_own(model)), published_file(model, published)
    monkeypatch.setattr(f"monai.networks.nets.{reader}", lambda *_, **__: dict(file))
    found = monais_own(model, pretrained=True).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items() if value.ndim)


def test_files_of_other_networks_do_not_fit() -> None:
    deeper = built("densenet169", norm="frozen").state_dict()
    with pytest.raises(UserError, match=r"'features\.denseblock3\.denselayer25\..*' has no place"):
        start(by_name("densenet121")(), deeper)
    with pytest.raises(UserError, match="no name in it"):
        start(by_name("resnet50")(), built("seresnet50", norm="frozen").state_dict())
    with pytest.raises(UserError, match="not 'group'"):
        start(by_name("efficientnet-b0")(norm="group"), monais_own("efficientnet-b0").state_dict())


@pytest.mark.parametrize("model", ONE_OF_A_FAMILY)
def test_half_precision_channels_last_and_a_gradient_for_every_parameter(model: str) -> None:
    net = by_name(model)(norm="group").to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        level = net.train()(images)[-1]
        again = net(images)[-1]
    assert torch.equal(level, again), "something is drawn in the forward pass"
    assert level.is_contiguous(memory_format=torch.channels_last)
    level.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_start_is_a_function_of_the_seed() -> None:
    first, second, third = (by_name("seresnet50")(levels=1, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layer1.0.se_layer.fc.0.weight"], third["layer1.0.se_layer.fc.0.weight"])
    assert torch.equal(first["layer0.conv1.weight"], by_name("seresnet50")(seed=1).state_dict()["layer0.conv1.weight"])


def _step(model: str, deterministic: bool) -> tuple[float, str]:
    """Take two steps of the engine; return the least that a parameter moved, and a hash of all of them."""
    backbone = by_name(model)(levels=2, in_channels=1, norm="group")
    network = EmbeddingModel(
        backbone, LinearEmbedding(backbone.channels[-1], 12), gate.convolutions(backbone, hidden=(8, 4))
    )
    before = [p.detach().clone() for p in network.parameters()]
    pieces = 2 if deterministic else 1
    engine = DDPEngine(
        network, lambda net: torch.optim.Adam(net.parameters(), lr=1e-2), pieces, False, deterministic, precision="bf16"
    )
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 1, 32, 32)).astype(np.float32))
    start, stop = batch_slice(8, pieces, distributed.rank(), distributed.world_size())
    labels = torch.arange(8) // 2
    for _ in range(2):
        unit = nn.functional.normalize(engine.embed(images[start:stop], None), dim=1)
        engine.backward(margin_loss(unit, labels, all_triplets(unit, labels)))
        assert engine.step().fault is None
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in network.parameters())).hexdigest()
    return min(float((p - old).abs().max()) for p, old in zip(network.parameters(), before, strict=True)), digest


@pytest.mark.parametrize("model", ["densenet121", "efficientnet-b0"])
def test_steps_of_the_engine_move_every_parameter_and_deterministic_ones_do_not_depend_on_ranks(model: str) -> None:
    ((moved, _),) = run_on_ranks(_step, 1, model, False)
    assert moved > 0
    found = [answer for world_size in (1, 2) for answer in run_on_ranks(_step, world_size, model, True)]
    assert len(found) == 3 and len(set(found)) == 1 and found[0][0] > 0
