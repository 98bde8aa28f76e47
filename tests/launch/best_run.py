"""Make a run folder with a best checkpoint of untrained weights: whole paths of what looks at a run, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch import build, engines, networks
from launch.config import checked, dump_config
from trainer import distributed
from trainer.checkpoint import CheckpointStore


def best_run(folder: Path, shards: Path, size: int, more: dict[str, Tensor] | None = None, **sections: Any) -> Path:
    """Write config.yaml and a checkpoint, with `more` tensors in it; `sections` go over the small defaults."""
    tree: dict[str, Any] = {
        "name": folder.name,
        "data": {"shards": str(shards), "image_size": size},
        "model": {
            "backbone": {"name": "small_resnet", "widths": [4, 8], "blocks": [1, 1]},
            "gate": {"name": "convolutions", "hidden": [4, 4]},
            "num_dims": 6,
            "num_subspaces": 2,
        },
        "launch": {"threads": 1},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    config = checked(tree, "test")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    distributed.initialise(60)
    try:
        engine = engines.reading_engine(config, networks.model(config))
        if engine.average is not None:  # type: ignore[attr-defined]
            for parameter in engine.model.parameters():
                parameter.data += 1
        state = build.fresh_state(config)
        state.best = {"epoch": 3, "score": 0.5}
        tensors = {**engine.tensors(), **(more or {})}
        CheckpointStore(folder / "checkpoints").save(state.to_checkpoint(tensors, {}, 0), best=True)
    finally:
        distributed.shut_down()
    return folder


def classifier(num_classes: int, num_dims: int = 6) -> dict[str, Tensor]:
    """Return the tensors of a linear classifier as a classification run keeps them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_classes, num_dims, generator=generator)
    return {"loss/0/weight": weight, "loss/0/bias": torch.zeros(num_classes)}
