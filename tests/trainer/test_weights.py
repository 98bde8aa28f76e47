"""Files of weights: what fits is used and told, in any common wrapping; a network that fits by halves is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data_shards.errors import UserError
from trainer.backbones.norm import norm_factory
from trainer.backbones.resnet import ResNet
from trainer.backbones.small import SmallResNet
from trainer.backbones.vgg import VGG
from trainer.export import export
from trainer.heads import gate
from trainer.heads.dense import DenseEmbedding
from trainer.heads.linear import LinearEmbedding
from trainer.heads.mask import MaskHead
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition
from trainer.weights import best_match, fitted, load

State = dict[str, Tensor]


def start(backbone: nn.Module, state: State) -> None:
    backbone.load_state_dict(fitted(backbone, state, best_match(backbone, state)), strict=False)


def pretrained(backbone: nn.Module) -> State:
    """A state dict whose statistics and affine parts are not the identity."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5 if tensor.ndim == 1 else tensor.clone()
        for name, tensor in backbone.state_dict().items()
    }


def resnet18(**arguments: object) -> ResNet:
    return ResNet(18, **{"stages": 2, **arguments})  # type: ignore[arg-type]


def small(num_dims: int = 8, seed: int = 0, norm: str = "group") -> EmbeddingModel:
    backbone = SmallResNet((8, 16), (1, 1), norm=norm, seed=seed)  # type: ignore[arg-type]
    return EmbeddingModel(
        backbone, LinearEmbedding(16, num_dims, seed=seed), gate.convolutions(backbone, hidden=(4, 2), seed=seed)
    )


def saved(path: Path, state: State) -> Path:
    save_file(state, path)
    return path


def same(found: nn.Module, expected: State) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


def test_a_deeper_network_and_its_classifier_load_into_a_shallower_one_and_it_is_told(tmp_path: Path) -> None:
    state = {**pretrained(resnet18(stages=4)), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    path = saved(tmp_path / "w.safetensors", state)
    network = EmbeddingModel(resnet18(), LinearEmbedding(128))
    said = load(network, path, "resnet18")
    own = network.backbone.state_dict()
    counters = [key for key in own if key.endswith("num_batches_tracked")]
    assert all(torch.equal(value, state[key]) for key, value in own.items() if key not in counters)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in said
    assert f"{len(own) - len(counters)} of {len(own)} tensors" in said
    assert f"not in the file: {counters[0]}" in said
    assert "fc.bias" in said.partition("not used: ")[2]
    assert "\n" not in said and len(said) < 1000


@pytest.mark.parametrize("wrapper", ["module.", "model.", "backbone.", "encoder.", "net.", "module.model.backbone."])
def test_wrappers_are_taken_off(wrapper: str) -> None:
    state = pretrained(resnet18())
    wrapped = {wrapper + key: value for key, value in state.items()}
    found = resnet18(seed=1)
    start(found, {**wrapped, "module.fc.weight": torch.zeros(2, 2)})
    assert same(found, state)


def test_of_two_wrappers_that_match_the_one_that_matches_more_counts() -> None:
    state = pretrained(resnet18())
    stray = {"conv1.weight": torch.zeros(1), "model.conv1.weight": torch.zeros(1), "model.bn1.bias": torch.zeros(1)}
    found = resnet18(seed=1)
    start(found, {**stray, **{f"encoder.{key}": value for key, value in state.items()}})
    assert same(found, state)


def test_grey_sums_the_first_convolution() -> None:
    state = pretrained(resnet18())
    grey, colour = resnet18(in_channels=1), resnet18()
    start(grey, state)
    start(colour, state)
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(grey(image)[-1], colour(image.expand(1, 3, 32, 32))[-1], rtol=1e-4, atol=1e-4)


def edited(**changes: Tensor | None) -> State:
    """A file for ResNet-18 in which the named tensors (dots as double underscores) are another, or gone."""
    state = pretrained(resnet18())
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return {key: value for key, value in {**state, **named}.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (pretrained(ResNet(34, stages=2)), r"'layer1\.2\.conv1\.weight' has no place"),
        (pretrained(ResNet(50, stages=2)), r"'layer1\.0\.conv3\.weight' has no place"),
        (pretrained(resnet18(stages=1)), r"'layer2\.0\.conv1\.weight' is missing"),
        (pretrained(resnet18(in_channels=1)), r"'conv1\.weight' has shape \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)"),
        (edited(bn1__running_mean=None), r"'bn1\.running_mean' is missing"),
        (edited(bn1__weight=torch.ones(32)), r"'bn1\.weight' has shape \(32,\) instead of \(64,\)"),
        (edited(bn1__weight=torch.ones(64, dtype=torch.int64)), r"'bn1\.weight' is of torch\.int64"),
        (edited(bn1__weight=torch.full((64,), torch.nan)), r"'bn1\.weight' is not finite"),
        (edited(bn1__gain=torch.ones(64)), r"'bn1\.gain' has no place"),
        (small().backbone.state_dict(), r"no name in it .* 'stem\.weight', .* 'conv1\.weight'"),
        ({}, "it is empty"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_by_name(state: State, reason: str) -> None:
    net = resnet18()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=reason):
        start(net, state)
    assert same(net, before)


def test_batch_norms_do_not_become_group_norms_nor_the_other_way_round() -> None:
    with pytest.raises(UserError, match="'frozen' or 'batch', not 'group'"):
        start(resnet18(norm="group"), pretrained(resnet18()))
    with pytest.raises(UserError, match=r"'bn1\.running_mean' is missing"):
        start(resnet18(), pretrained(resnet18(norm="group")))
    start(resnet18(norm="batch"), pretrained(resnet18(norm="frozen")))


def exported(folder: Path, network: EmbeddingModel) -> Path:
    facts = dict.fromkeys(
        ("name", "backbone", "weights", "data", "channels", "size", "mean", "std", "monitor", "epoch")
    )
    export(folder, network, SubspacePartition.equal(network.head.num_dims, 2), facts, {})
    return folder / "model.safetensors"


def test_what_a_run_exported_starts_another_with_its_gate_and_head(tmp_path: Path) -> None:
    trained, other = small(seed=1), small(seed=2)
    said = load(other, exported(tmp_path, trained), "small_resnet")
    assert same(other, trained.state_dict())
    assert said.endswith("; gate.base, gate.branches, head.embedding of the file too") and "not used" not in said
    checkpoint = {f"model/{key}": value for key, value in trained.state_dict().items()}
    path = saved(tmp_path / "tensors.safetensors", {**checkpoint, "optim/head.embedding.bias/step": torch.ones(1)})
    other = small(seed=2)
    load(other, path, "small_resnet")
    assert same(other, trained.state_dict())


def test_a_head_of_another_size_starts_anew(tmp_path: Path) -> None:
    trained, other, untouched = small(seed=1), small(num_dims=12, seed=2), small(num_dims=12, seed=2)
    said = load(other, exported(tmp_path, trained), "small_resnet")
    assert same(other.backbone, trained.backbone.state_dict())
    assert same(other.head, untouched.head.state_dict())
    assert same(other.gate, trained.gate.state_dict())
    assert said.endswith(
        "; not used: head.embedding.bias, head.embedding.weight; gate.base, gate.branches of the file too"
    )


def test_the_second_stage_takes_all_but_the_new_branch_and_a_transfer_the_backbone_only(tmp_path: Path) -> None:
    def dense(num_clusters: int, seed: int) -> EmbeddingModel:
        backbone = VGG("tiny", "group", 1, seed=seed)
        head = DenseEmbedding(backbone.channels, norm_factory("group"), 4, 8, num_clusters, seed=seed)
        return EmbeddingModel(backbone, head)

    first, second, untouched = dense(0, 1), dense(3, 2), dense(3, 2)
    path = saved(tmp_path / "tensors.safetensors", dict(first.state_dict()))
    assert load(second, path, "vgg16").endswith("; head.decoder, head.to_vectors of the file too")
    assert same(second.backbone, first.backbone.state_dict())
    clusters = second.head.get_submodule("to_clusters")
    assert same(clusters, untouched.head.get_submodule("to_clusters").state_dict())
    mask = EmbeddingModel(second.backbone, MaskHead(second.backbone.channels, norm_factory("group"), 32))
    decoder = {name: value.clone() for name, value in mask.head.state_dict().items()}
    assert "of the file too" not in load(mask, path, "vgg16", only_backbone=True)
    assert same(mask.head, decoder)


def test_foreign_names_are_shown_as_text(tmp_path: Path) -> None:
    state = {**small().backbone.state_dict(), "evil\x1b[2J\nname" + "x" * 1000: torch.ones(1)}
    torch.save(state, tmp_path / "w.pth")
    said = load(small(seed=1), tmp_path / "w.pth", "small_resnet")
    assert said.isprintable() and len(said) < 1000
    assert r"not used: evil\x1b[2J\nname" in said


class Doubled(nn.Module):
    """A backbone with a dialect: what it calls a.conv others call one.conv."""

    parts = ("a",)
    dialects = (((r"^a\.", "one."),),)

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "fc": nn.Linear(4, 2)})


def test_dialects_and_a_linear_layer_from_a_convolution() -> None:
    state = {f"module.one.{key}": value + 1 for key, value in Doubled().a.state_dict().items()}
    state["module.one.fc.weight"] = state["module.one.fc.weight"][:, :, None, None]
    found = Doubled()
    start(found, state)
    assert torch.equal(found.a["fc"].weight, state["module.one.fc.weight"][:, :, 0, 0])
    assert torch.equal(found.a["conv"].bias, state["module.one.conv.bias"])
    with pytest.raises(UserError, match=r"one\.more' has no place"):
        start(found, {**state, "module.one.more": torch.ones(1)})
