"""Run folders with long or short histories, whose curves are known by formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.status import write_status

START = 1_760_000_000.0
STEP_S = 0.5


def loss_at(step: int) -> float:
    return 1.0 + 100.0 / (100.0 + step)


def score_at(epoch: int, num_epochs: int) -> float:
    return 0.2 + 0.7 * epoch / num_epochs


def make_run(run: Path, num_steps: int = 400, per_epoch: int = 100, state: str = "completed", **status: Any) -> Path:
    """Write a run of steps of half a second, with a validation per epoch and a split half-way."""
    run.mkdir(parents=True, exist_ok=True)
    num_epochs = num_steps // per_epoch
    settings = f"name: {run.name}\ntrain: {{epochs: {num_epochs + 2}}}\nmodel: {{num_dims: 32, num_subspaces: 1}}\n"
    (run / "config.yaml").write_text(settings)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, num_steps + 1):
            epoch, when = (step - 1) // per_epoch, START + STEP_S * step
            line: dict[str, Any] = {"epoch": epoch, "step": step, "subspace": 0, "loss": loss_at(step), "lr": 0.001}
            file.write(json.dumps(line | {"images_per_s": 250.0, "time": when}) + "\n")
            if step % per_epoch == 0:
                value = score_at(epoch + 1, num_epochs)
                scores = {"recall": {"1": value}, "macro_recall_at_1": value, "map_at_r": value / 2}
                scores |= {"nmi": {"mean": value, "std": 0.0}, "ami": {"mean": value, "std": 0.0}}
                line = {"epoch": epoch, "step": step, "time": when, "train": {"loss": loss_at(step)}}
                file.write(json.dumps(line | {"validation": scores}) + "\n")
    half = num_epochs // 2
    growth = {"time": START + STEP_S * half * per_epoch, "event": "growth", "epoch": half - 1, "step": half * per_epoch}
    growth |= {"widths": [20, 12], "num_subspaces": 2}
    (run / "events.jsonl").write_text(json.dumps(growth) + "\n")
    known = {"state": state, "epoch": num_epochs, "step": num_steps, "num_subspaces": 2, "world_size": 1, "attempt": 1}
    write_status(run, **{**known, **status})
    return run
