"""Networks for other programs: equal to torch in onnxruntime and after torch.export, under other libraries' names."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer import portable, weights
from trainer.backbones.from_monai import MonaiBackbone
from trainer.backbones.resnet import ResNet
from trainer.backbones.small import SmallResNet
from trainer.heads.gate import convolutions
from trainer.heads.linear import LinearEmbedding
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition
from trainer.tensor_file import read_weights

PARTITION = SubspacePartition((4, 2))
FACTS = {"name": "mine", "preprocessing": {"mean": [0.5], "steps": ["decode"]}}
SIZE = 32


@pytest.fixture(scope="module")
def network() -> EmbeddingModel:
    backbone = SmallResNet(widths=[4, 8], blocks=[1, 1], norm="group", seed=1)
    gate = convolutions(backbone, hidden=[4, 4], seed=1)
    return EmbeddingModel(backbone, LinearEmbedding(8, num_dims=6, seed=1), gate).eval()


@pytest.fixture(scope="module")
def program(network: EmbeddingModel) -> torch.export.ExportedProgram:
    return portable.program(network, PARTITION, 3, SIZE)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def expected(network: EmbeddingModel, batch: Tensor) -> Tensor:
    vectors = network(batch).vectors
    blocks = [block / block.norm(dim=1, keepdim=True) / 2**0.5 for block in vectors.split([4, 2], dim=1)]
    return torch.cat(blocks, dim=1)


def test_onnxruntime_computes_what_torch_does(network: EmbeddingModel, program: object, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    portable.write_onnx(tmp_path / "model.onnx", program, FACTS)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(port.name, port.shape) for port in session.get_inputs()] == [("images", ["batch", 3, SIZE, SIZE])]
    assert [(port.name, port.shape) for port in session.get_outputs()] == [("vectors", ["batch", 6])]
    for count in (1, 3):
        (found,) = session.run(None, {"images": images(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(network, images(count)), atol=1e-5, rtol=0)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["preprocessing"]) == FACTS["preprocessing"] and told["name"] == "mine"


def test_the_program_computes_what_torch_does_and_holds_no_pickle(
    network: EmbeddingModel, program: object, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    portable.write_program(path, program, FACTS)
    told = {"subspace.json": ""}
    found = torch.export.load(path, extra_files=told).module()
    for count in (1, 3):
        torch.testing.assert_close(found(images(count)), expected(network, images(count)), atol=1e-5, rtol=0)
    assert json.loads(told["subspace.json"]) == FACTS
    with zipfile.ZipFile(path) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, data in inside.items() if data[:2] == b"PK" or name.endswith((".pkl", "data.pkl"))]
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_cannot_be_traced_is_one_sentence(network: EmbeddingModel) -> None:
    class Undecided(EmbeddingModel):
        def forward(self, batch: Tensor, keep: Tensor | None = None) -> object:
            return super().forward(batch if batch.sum().item() > 0 else -batch, keep)

    undecided = Undecided(network.backbone, network.head, network.gate)
    with pytest.raises(portable.UserError, match="cannot be exported as a program"):
        portable.program(undecided, PARTITION, 3, SIZE)


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        # as torchvision's resnet18 and densenet121 (its code) have them, and timm's legacy_seresnet50
        (lambda: ResNet(depth=18), {"conv1.weight", "layer3.0.downsample.1.running_var", "layer2.1.conv2.weight"}),
        (
            lambda: MonaiBackbone("densenet121", levels=1),
            {"features.conv0.weight", "features.denseblock1.denselayer6.norm2.running_mean"},
        ),
        (
            lambda: MonaiBackbone("seresnet50", levels=1),
            {"layer0.conv1.weight", "layer1.0.se_module.fc1.weight", "layer1.0.downsample.0.weight"},
        ),
    ],
)
def test_the_backbone_has_the_names_of_its_library_and_comes_back(
    backbone: object, names: set[str], tmp_path: Path
) -> None:
    whole = backbone()  # type: ignore[operator]
    model = EmbeddingModel(whole, LinearEmbedding(whole.channels[-1], num_dims=6))
    portable.write_backbone(tmp_path / "backbone.safetensors", model, FACTS)
    state = read_weights(tmp_path / "backbone.safetensors")
    assert names <= set(state) and len(state) == len(whole.state_dict())
    other = backbone()  # type: ignore[operator]
    for parameter in other.parameters():
        parameter.data.zero_()
    taken = weights.fitted(other, state, weights.best_match(other, state))
    assert all(torch.equal(taken[name], value) for name, value in whole.state_dict().items())
