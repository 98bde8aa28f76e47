"""The exported folder: what its weights, its description and its card say."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from trainer.backbones.small import SmallResNet
from trainer.export import export
from trainer.heads.linear import LinearEmbedding
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition
from trainer.tensor_file import read_tensors

FACTS = {
    **{"name": "mine", "backbone": "small_resnet", "weights": "random", "data": "eyes (folder)", "channels": 3},
    **{"size": 32, "mean": [0.5], "std": [0.25], "monitor": "nmi", "epoch": 7, "notes": ["10 % was drawn"]},
    "counts": {"train": {"a|b": 3, "<c>": 4}, "test": {"a|b": 1, "<c>": 0}},
    "preprocessing": {"steps": ["decode", "crop"]},
}
SCORES = {
    "split": "test", "num_samples": 9, "exclude": "group", "nmi": {"mean": 0.5}, "ami": {"mean": 0.25},
    "recall": {"1": 0.75}, "macro_recall_at_1": 0.7, "map_at_r": 0.6,
}  # fmt: skip


def network() -> EmbeddingModel:
    backbone = SmallResNet(widths=[4, 8], blocks=[1, 1])
    return EmbeddingModel(backbone, LinearEmbedding(8, num_dims=6))


def test_the_folder_has_weights_description_and_card(tmp_path: Path) -> None:
    model = network()
    paths = export(tmp_path, model, SubspacePartition((4, 2)), FACTS, {"test": SCORES})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    stored = read_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    told = json.loads((tmp_path / "config.json").read_text())
    assert (told["format"], told["widths"], told["num_dims"], told["epoch"]) == (1, [4, 2], 6, 7)


def test_the_card_says_scores_data_and_licence(tmp_path: Path) -> None:
    export(tmp_path, network(), SubspacePartition((4, 2)), FACTS, {"test": SCORES})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: subspace-trainer\n") and "\nlicense: other\n" in card
    assert "| test | 9 | 0.5000 | 0.2500 | 0.7500 | 0.7000 | 0.6000 |" in card
    assert "| a\\|b | 3 | 1 |" in card and "| &lt;c> | 4 | 0 |" in card and "| all | 7 | 1 |" in card
    assert "10 % was drawn" in card and "own group" in card and "1. decode\n2. crop" in card
    assert "## Licence" in card and "not a medical device" in card
