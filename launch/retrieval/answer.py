"""What is asked and what is answered: the one form for the command line, the service and its page.

Legend: K subspaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from data_shards.errors import UserError


class Refused(UserError):
    """A query that cannot be answered, with the sentence that says why; `status` is its HTTP status."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status

    def __reduce__(self) -> tuple[type[Refused], tuple[str, int]]:
        return type(self), (str(self), self.status)


@dataclass(frozen=True)
class Query:
    """An image file in memory, or the sample id of an indexed image, which is then left out itself.

    `exclude` "group" leaves out the images of the query's own group (patient): of `group` if that is named, else of the
    indexed image that the query is. `subspaces` counts from 0; () is all of them. `overlay` asks for pictures.
    """

    image: bytes = b""
    sample_id: int | None = None
    k: int = 10
    subspaces: tuple[int, ...] = ()
    exclude: Literal["none", "group"] = "none"
    group: str = ""
    overlay: bool = False


class Neighbour(BaseModel):
    """An indexed image that was found."""

    sample_id: int
    split: str
    label: str
    group: str = Field(description="patient, lesion or what else images share; empty if none")
    path: str = Field(description="where the image came from, relative to its source")
    distance: float = Field(description="Euclidean, between unit vectors: 0 to 2")
    by_subspace: list[float] = Field(description="the same within each subspace")


class Vote(BaseModel):
    """How many of the neighbours have a label."""

    label: str
    share: float


class Novelty(BaseModel):
    """Is the image unlike what is indexed? By its nearest neighbour in the whole embedding."""

    flag: bool = Field(description="its distance is above the threshold")
    distance: float
    threshold: float = Field(description="a quantile of the distances among the indexed images themselves")
    quantile: float


class Answer(BaseModel):
    """Neighbours, nearest first, and what they say together."""

    neighbours: list[Neighbour]
    vote: list[Vote] = Field(description="most frequent label first; the label of the nearest wins a tie")
    subspaces: list[int] = Field(description="by which subspaces was ranked, counted from 0")
    excluded_group: str | None = Field(description="the group that was left out; null when none was known or wanted")
    out_of_distribution: Novelty | None
    picture: str | None = Field(None, description="data: address of the image as the network sees it")
    attention: str | None = Field(
        None, description="data: address of the same under its attention map, if there is one"
    )
