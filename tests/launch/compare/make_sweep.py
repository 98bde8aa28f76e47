"""Make the runs of a sweep without training: scikit-learn's digits, embedded by a few principal components and noise.

`python -m tests.launch.compare.make_sweep FOLDER` makes a sweep with two datasets and six methods to look at:
    subspace compare FOLDER/sweep.yaml --out FOLDER/out --tables-only
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from launch.compare.cells import Cell, cells
from launch.compare.sweep_file import read_sweep
from launch.config import dump_config
from launch.status import write_status
from trainer.metrics.clustering import clustering_scores
from trainer.metrics.retrieval import retrieval_scores

NMI_SEEDS = 2
CONFIG = {"data": {"shards": "nowhere"}, "evaluate": {"nmi_seeds": NMI_SEEDS}, "cluster": {"backend": "local"}}


def write_sweep(folder: Path, **changes: Any) -> Path:
    """Write a small sweep file and its configuration; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    tree: dict[str, Any] = {
        "name": "small",
        "reference": "adsl",
        "seeds": [0, 1],
        "metrics": ["nmi", "recall_at_1", "map_at_r"],
        "datasets": {"digits": {"config": "config.yaml"}},
        "methods": {"adsl": {}, "mml-2": {"model.num_subspaces": 2}, "single": {"growth.enabled": False}},
        "titles": {"adsl": "ADSL", "mml-2": "fixed | K = 2"},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**tree, **changes}, sort_keys=False))
    return path


def write_runs(sweep_path: Path, out: Path, size: int = 120, skip: tuple[str, ...] = ()) -> list[Cell]:
    """Complete all runs of a sweep but those whose name is in `skip`; return all."""
    found = cells(read_sweep(sweep_path), sweep_path, out)
    for number, cell in enumerate(found):
        if cell.name not in skip:
            complete(
                cell, noise=0.5 + 0.05 * sorted({c.method for c in found}).index(cell.method), size=size, draw=number
            )
    return found


def complete(cell: Cell, noise: float = 1.0, size: int = 120, draw: int = 0) -> None:
    """Write the folder of a completed run."""
    run = cell.run
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_config(cell.config))
    write_status(run, state="completed", epoch=3, step=300, num_subspaces=cell.config.model.num_subspaces, exit_code=0)
    events = [{"time": 1e9 + 60 * i, "event": name, "attempt": 1} for i, name in enumerate(("started", "completed"))]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    write_evaluation(run, "test", noise, size, draw)


def write_evaluation(run: Path, split: str, noise: float, size: int, draw: int) -> None:
    digits = load_digits()
    flat = PCA(6, random_state=0).fit_transform(digits.data[:size])
    flat = flat + noise * flat.std() * np.random.default_rng(draw).standard_normal(flat.shape)
    vectors = (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)
    labels = digits.target[:size].astype(np.int64)
    scores = {**clustering_scores(vectors, labels, NMI_SEEDS), **retrieval_scores(vectors, labels)}
    (run / "evaluation" / f"{split}.json").write_text(json.dumps({"split": split, **scores}))
    arrays = {"vectors": vectors, "labels": labels, "sample_ids": np.arange(size)}
    save_file(arrays, run / "evaluation" / f"{split}.safetensors")


def main(folder: Path) -> None:
    methods: dict[str, Any] = {"adsl": {}, **{f"mml-{k}": {"model.num_subspaces": k} for k in (2, 4, 8)}}
    methods |= {"single": {"growth.enabled": False}, "triplet": {"objective.miner": {"name": "all_triplets"}}}
    datasets = {name: {"config": "config.yaml"} for name in ("digits", "omniglot")}
    metrics = ["nmi", "ami", "recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r"]
    titles = {"adsl": "ADSL (grown)", **{f"mml-{k}": f"fixed K = {k}" for k in (2, 4, 8)}, "single": "one embedding"}
    changes = {"name": "digits-to-look-at", "methods": methods, "datasets": datasets, "metrics": metrics}
    path = write_sweep(folder, **changes, titles=titles, seeds=[0, 1, 2])
    write_runs(path, folder / "out", size=400, skip=("omniglot triplet seed 1",))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
