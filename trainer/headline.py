"""The few scores of a split that are told in passing: on the terminal, to TensorBoard, in a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return scores by the names that people know them by, the same for every split of a run."""
    if "loss" in scores:
        return {"loss": float(scores["loss"])}
    if "dice" in scores:
        return {"Dice": float(scores["dice"]["mean"]), "IoU": float(scores["iou"]["mean"])}
    return {
        "NMI": float(scores["nmi"]["mean"]),
        "AMI": float(scores["ami"]["mean"]),
        "recall@1": float(scores["recall"]["1"]),
        "macro recall@1": float(scores["macro_recall_at_1"]),
        "MAP@R": float(scores["map_at_r"]),
    }


def key(name: str) -> str:
    """Return a name of `headline` as configurations spell it: "MAP@R" -> "map_at_r"."""
    return name.lower().replace("@", "_at_").replace(" ", "_")
