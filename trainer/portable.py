"""A trained network for programs that know nothing of this one: the backbone's weights by the names of other libraries,
an ONNX graph, a torch.export program. Nothing in them is a pickle.

The input of graph and program are prepared images, the output is what `Embedder` gives; how images are prepared is in
their metadata. Both take any number of images.

Legend: B images, C channels, S x S pixels, D embedding width.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_shards.errors import UserError
from trainer.export import replaced, save
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition
from trainer.weights import spoken

INPUT, OUTPUT = "images", "vectors"
OPSET = 18


class Portable(nn.Module):
    """Prepared images (B, C, S, S) float32 -> vectors (B, D) of unit length, cut and normalised."""

    def __init__(self, network: EmbeddingModel, partition: SubspacePartition) -> None:
        super().__init__()
        self.network, self.partition = network, partition

    def forward(self, images: Tensor) -> Tensor:
        return self.partition.normalize(self.network(images).vectors)


def backbone_tensors(network: EmbeddingModel) -> dict[str, Tensor]:
    """Return the backbone's tensors, named as the library does that its architecture is from: torchvision, timm, ..."""
    dialects = getattr(network.backbone, "dialects", ())
    dialect = dialects[0] if dialects else ()
    state = {spoken(name, dialect): value for name, value in network.backbone.state_dict().items()}
    whole = all(name.startswith("net.") for name in state)  # timm's are kept under one name
    return {name.removeprefix("net.") if whole else name: value for name, value in state.items()}


def write_backbone(path: Path, network: EmbeddingModel, facts: Mapping[str, Any]) -> None:
    """Write the backbone as safetensors that torchvision, timm or MONAI load into the same architecture."""
    save(path, backbone_tensors(network), _metadata(facts))


def program(network: EmbeddingModel, partition: SubspacePartition, channels: int, size: int) -> Any:
    """Return the torch.export program of a network in evaluation, on the CPU, for any number of images.

    Raises:
        UserError: it has a part that cannot be traced.
    """
    plain = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    plain.requires_grad_(False)
    example = torch.zeros(2, channels, size, size)  # one image would make the batch axis a constant
    try:
        with _quiet():
            batch = torch.export.Dim("batch", min=1)
            return torch.export.export(Portable(plain, partition), (example,), dynamic_shapes=({0: batch},))
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise UserError(f"this network cannot be exported as a program: {str(error).splitlines()[0]}") from None


def write_program(path: Path, found: Any, facts: Mapping[str, Any]) -> None:
    """Write a .pt2 file for torch.export.load, which takes `extra_files={"subspace.json": ""}` for the metadata."""
    found.example_inputs = None  # the one thing that torch would pickle
    with replaced(path) as temporary:
        torch.export.save(found, temporary, extra_files={"subspace.json": json.dumps(facts)})


def write_onnx(path: Path, found: Any, facts: Mapping[str, Any]) -> None:
    """Write an ONNX file; `metadata_props` hold every field of `facts`."""
    with _quiet():
        made = torch.onnx.export(
            found, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=True, verbose=False
        )
    assert made is not None
    shape = made.model.graph.inputs[0].shape
    assert shape is not None
    made.rename_axes({str(shape[0]): "batch"})  # torch calls it s34, say
    made.model.metadata_props.update(_metadata(facts))
    with replaced(path) as temporary:
        made.save(temporary, external_data=False)


def check_onnx() -> None:
    """Raise UserError when the extra `onnx` is not installed."""
    if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("ONNX files need two libraries more; pip install 'subspace-trainer[onnx]'")


def _metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return facts as text, which is all that these formats hold."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what torch says about its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
