"""A trained embedding for use elsewhere, as a folder: model.safetensors, config.json, README.md (its model card).

Tensors have the names of our modules, `backbone.`, `gate.` and `head.`; behind `backbone.` they are torchvision's for
its networks. For files with the names of other libraries, and for programs, see portable.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from data_shards.files import sync, write_text
from trainer.model import EmbeddingModel
from trainer.model_card import card
from trainer.subspaces.partition import SubspacePartition

FORMAT = 1  # of config.json
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def export(
    folder: Path,
    model: EmbeddingModel,
    partition: SubspacePartition,
    facts: dict[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
) -> list[Path]:
    """Write the export folder; `facts` are the fields of the card and of config.json that the run knows."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in (WEIGHTS, CONFIG, "README.md")]
    save(paths[0], model.state_dict(), {"widths": json.dumps(partition.widths)})
    content = {"format": FORMAT, **facts, "num_dims": partition.num_dims, "widths": list(partition.widths)}
    write_text(paths[1], json.dumps(content, indent=1) + "\n")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    write_text(paths[2], card(content, num_parameters, evaluations))
    return paths


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replaced(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt", **metadata})


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a place of the same name to write a large file to, which takes `path`'s place when it is whole."""
    with TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        sync(temporary)
        temporary.replace(path)
