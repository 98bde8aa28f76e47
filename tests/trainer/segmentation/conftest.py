"""A network whose right answer is known: every channel of its only level is the share of one colour in a cell."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from data_shards.build import build
from data_shards.reader import ShardFolder, open_shards
from trainer.heads.embedded import Embedded, EmbeddingHead
from trainer.model import EmbeddingModel


class Cells(nn.Module):
    """(N, 3, H, W) -> one level (N, 3, H / 8, W / 8): mean red, green and blue of cells of 8 x 8 pixels."""

    channels, strides = (3,), (8,)

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.pool(images)]


class PlainHead(EmbeddingHead):
    """Mean over the cells, then a linear layer (D, 3) without bias."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Linear(3, len(weight), bias=False)
        self.embedding.weight.data = weight
        self.num_features, self.dropout = 3, 0.0

    def forward(self, branches: Sequence[Sequence[Tensor]], keep: Tensor | None = None) -> Embedded:
        pooled = branches[0][-1].mean(dim=(2, 3))
        return Embedded(self.embedding(pooled), pooled, None)


@pytest.fixture
def colours() -> EmbeddingModel:
    """Return the network; dimension 0 counts red, 1 green, 2 blue, 3 red and green."""
    weight = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    return EmbeddingModel(Cells(), PlainHead(weight))


@pytest.fixture
def squares() -> dict[str, Tensor]:
    """Return images (3, 32, 32) on black: a colour's cell at (row, column) of 4 x 4 is bright."""

    def image(**cells: tuple[int, int]) -> Tensor:
        out = torch.zeros(3, 32, 32)
        for name, (row, column) in cells.items():
            out["rgb".index(name), 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
        return out

    return {
        "red and green": image(r=(0, 1), g=(3, 2)),
        "red and blue": image(r=(2, 2), b=(1, 0)),
        "green and blue": image(g=(0, 0), b=(3, 3)),
    }


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    """Return 60 phantoms of 32 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "phantoms"
    build("phantoms", folder, size=32, options={"num_samples": 60, "label_by": "colour", "levels": 2})
    return open_shards(folder)
