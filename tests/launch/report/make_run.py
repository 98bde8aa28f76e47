"""Make a run folder out of real data without training: scikit-learn's digits, embedded by PCA.

Epoch e keeps e + 2 principal components, so curves, cluster sizes, neighbours and scores are those of real
embeddings that get better. `python -m tests.launch.report.make_run RUN` makes one to look at.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

START_TIME = 1_760_000_000.0


def scores_of(vectors: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Scores by scikit-learn, in the format of evaluation/*.json."""
    _, found = neighbours_of(vectors, 8)
    right = labels[found] == labels[:, None]
    clusters = KMeans(10, n_init=1, random_state=0).fit_predict(vectors)
    nmi, ami = (f(labels, clusters) for f in (normalized_mutual_info_score, adjusted_mutual_info_score))
    return {
        "num_samples": len(labels),
        "num_classes": 10,
        "nmi": {"mean": nmi, "std": 0.012},
        "ami": {"mean": ami, "std": 0.013},
        "recall": {str(k): float(right[:, :k].any(1).mean()) for k in (1, 2, 4, 8)},
        "macro_recall_at_1": float(np.mean([right[labels == c, 0].mean() for c in range(10)])),
        "map_at_r": float(right.mean()) * 0.8,
        "r_precision": float(right.mean()) * 0.85,
        "num_lone_queries": 0,
    }


def neighbours_of(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and row numbers of the k nearest other rows."""
    distances, found = NearestNeighbors(n_neighbors=k + 1).fit(vectors).kneighbors(vectors)
    rows = np.arange(len(vectors))[:, None]
    keep = np.argsort(found == rows, axis=1, kind="stable")[:, :k]
    keep.sort(axis=1)
    return np.take_along_axis(distances, keep, 1), np.take_along_axis(found, keep, 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def widths_at(epoch: int, growth: dict[int, list[int]]) -> list[int]:
    return [w for e, w in sorted(growth.items()) if e < epoch][-1] if any(e < epoch for e in growth) else [32]


def build_digit_shards(dest: Path) -> bool:
    """Build real shards of the digits; False when the builder cannot."""
    if importlib.util.find_spec("data_shards.build") is None:
        return False
    from data_shards.build import build

    build("digits", dest)
    return True


def load_split(shards: Path | None, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 64), labels (N,), sample ids (N,) of a split, from shards or straight from scikit-learn."""
    if shards is None:
        digits = load_digits()
        part = slice(1437, None) if split == "test" else slice(1077, 1437)
        return digits.data[part], digits.target[part], np.arange(1797)[part]
    from data_shards.reader import open_shards

    reader = open_shards(shards).split(split)
    images = np.stack([reader.image(row) for row in range(len(reader))]).reshape(len(reader), -1)
    return images.astype(float), np.asarray(reader.labels), np.asarray(reader.sample_ids)


def make_run(
    run: Path,
    *,
    num_epochs: int = 30,
    growth: dict[int, list[int]] | None = None,
    shards: Path | None = None,
    splits: tuple[str, ...] = ("validation", "test"),
    maps: bool = True,
) -> Path:
    """Write a whole run folder; `growth` maps the epoch of a split to the widths after it."""
    growth = {} if growth is None else growth
    run.mkdir(parents=True)
    (run / "evaluation").mkdir()
    config = {"name": "digits", "seed": 7, "data": {"shards": str(shards or "missing-shards"), "image_size": 32}}
    config |= {"train": {"epochs": num_epochs, "batch_size": 32}, "model": {"num_dims": 32}}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    env = {"versions": {"python": "3.11.9", "torch": "2.13.0"}, "command": ["subspace", "train", "configs/a b.yaml"]}
    env |= {"machine": {"processor": "x86_64", "cores": 2}, "threads": {"OMP_NUM_THREADS": None}}
    (run / "env.json").write_text(json.dumps(env))
    status = {"state": "completed", "epoch": num_epochs, "step": num_epochs * 12, "num_subspaces": len(growth) + 1}
    status |= {"world_size": 2, "attempt": 0, "exit_code": 0, "reason": None, "time": START_TIME + num_epochs * 5}
    (run / "status.json").write_text(json.dumps(status))
    images, labels, _ = load_split(shards, "validation")
    write_history(run, images, labels, num_epochs, growth)
    for split in splits:
        write_evaluation(run, split, shards, widths_at(num_epochs, growth), maps)
    return run


def write_history(
    run: Path, images: np.ndarray, labels: np.ndarray, num_epochs: int, growth: dict[int, list[int]]
) -> None:
    rng = np.random.default_rng(0)
    components = PCA(32, random_state=0).fit_transform(images)
    metrics, events, step, previous = [], [{"time": START_TIME, "event": "started", "epoch": 0, "step": 0}], 0, None
    for epoch in range(num_epochs):
        now, widths = START_TIME + 5 * epoch, widths_at(epoch, growth)
        vectors = unit(components[:, : epoch + 2])
        if len(widths) > 1 and (epoch % 2 == 0 or epoch - 1 in growth):
            clusters = KMeans(len(widths), n_init=1, random_state=0).fit_predict(vectors)
            stability = None if previous is None else float(normalized_mutual_info_score(previous, clusters))
            counts = np.bincount(clusters, minlength=len(widths)).tolist()
            event = {"time": now, "event": "recluster", "epoch": epoch, "step": step, "version": epoch}
            events.append(event | {"counts": counts, "nmi_to_previous": stability, "num_subspaces": len(widths)})
            previous = clusters
        for _ in range(12):
            loss = 0.05 + 0.5 * np.exp(-epoch / 8) + rng.exponential(0.04)
            subspace = int(rng.integers(len(widths)))
            line = {"epoch": epoch, "step": step, "subspace": subspace, "loss": loss, "lr": 1e-3}
            metrics.append(line | {"images_per_s": 900.0, "time": now})
            step += 1
        scores = scores_of(vectors, labels) | {"split": "validation"}
        metrics.append({"epoch": epoch, "step": step, "time": now, "train": {"loss": loss}, "validation": scores})
        if epoch in growth:
            new = growth[epoch]
            event = {"time": now, "event": "growth", "epoch": epoch, "step": step, "decision_id": f"g{epoch}"}
            events.append(event | {"widths": new, "num_subspaces": len(new), "parent": len(new) - 2})
    events.append({"time": START_TIME + 5 * num_epochs, "event": "completed", "epoch": num_epochs, "step": step})
    (run / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def write_evaluation(run: Path, split: str, shards: Path | None, widths: list[int], maps: bool) -> None:
    images, labels, sample_ids = load_split(shards, split)
    components = PCA(sum(widths), random_state=0).fit_transform(images)
    bounds = np.cumsum([0, *widths])
    blocks = [unit(components[:, a:b]) for a, b in itertools.pairwise(bounds)]
    per_subspace = []
    for width, block in zip(widths, blocks, strict=True):
        own = scores_of(block, labels)
        per_subspace.append({"width": width, "recall": own["recall"], "nmi": own["nmi"], "map_at_r": own["map_at_r"]})
    vectors = unit(components).astype(np.float32)
    scores = scores_of(vectors, labels) | {"split": split, "per_subspace": per_subspace, "widths": widths}
    scores["class_names"] = [str(c) for c in range(10)]
    (run / "evaluation" / f"{split}.json").write_text(json.dumps(scores))
    distances, found = neighbours_of(vectors, 10)
    tensors = {"sample_ids": sample_ids.astype(np.int64), "labels": labels.astype(np.int64), "vectors": vectors}
    tensors |= {"neighbours": found.astype(np.int64), "neighbour_distances": distances.astype(np.float32)}
    if maps:
        side = round(np.sqrt(images.shape[1]))
        ink = images.reshape(len(images), 4, side // 4, 4, side // 4).mean((2, 4)) / max(images.max(), 1)
        tensors["maps"] = ink.astype(np.float16)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}  # else written scrambled
    save_file(tensors, run / "evaluation" / f"{split}.safetensors")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shard_folder = folder.with_name(folder.name + "-shards")
    built = shard_folder.exists() or build_digit_shards(shard_folder)
    make_run(folder, growth={6: [13, 19], 12: [13, 8, 11], 20: [13, 8, 6, 5]}, shards=shard_folder if built else None)
