"""A run and its index, ready to be asked: images in, neighbours out. Knows neither the web nor Ray.

Legend: n queries, S x S pixels of the evaluation image, C channels, D embedding width, h, w pixels of an attention map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch

from cluster.vector_index import set_threads
from data_shards.augment_batch import normalise
from data_shards.decode import Unreadable
from data_shards.errors import UserError
from data_shards.preprocessing import Preprocessing
from data_shards.uploads import Decoder
from launch import build
from launch.report.likeness import as_picture
from launch.report.thumbnails import encoded, overlay
from launch.retrieval.answer import Answer, Neighbour, Novelty, Query, Refused, Vote
from launch.retrieval.gallery import Gallery, Ranked, Want
from launch.retrieval.index_folder import open_images, open_screen, read_manifest
from launch.retrieval.indexing import weights_of
from launch.retrieval.originals import Originals
from launch.seen import Seen, of_image
from launch.trained import alone, config_of, load

SAME = 1e-3  # distance below which a query is taken to be the indexed image itself


class _Asked(NamedTuple):
    """A query with its (D,) vector, its picture if there is one, and its (h, w) attention map if there is one."""

    query: Query
    vector: np.ndarray
    seen: Seen | None
    attention: np.ndarray | None


class Searcher:
    """Use it in a `with`, from one thread at a time.

    Raises:
        UserError: no run, no index, or one that was made with other weights.
        DataIntegrityError: checkpoint or index is damaged.
    """

    def __init__(self, run: Path, folder: Path | None = None, num_threads: int | None = None) -> None:
        config = config_of(run)
        folder = folder or run / "index"
        self.manifest = manifest = read_manifest(folder)
        self.images = open_images(folder, manifest)
        self._transform = build.transform(config)
        self._steps = Preprocessing(manifest.channels, manifest.image_size, manifest.fit, self._transform)
        with ExitStack() as ends:
            self._decoder = ends.enter_context(Decoder(manifest.channels))
            with alone(config):
                trained = load(run, config)
            if weights_of(trained) != manifest.weights:
                raise UserError(f"{folder} was made with other weights than the best of {run}; index it again")
            threads = 1 if config.deterministic else num_threads or config.launch.threads or 1
            torch.set_num_threads(threads)
            set_threads(threads)
            self._network = trained.network
            self.gallery = Gallery(self.images, trained.partition, open_screen(folder, manifest, self.images))
            self.originals = Originals(run, manifest, self.images, self._transform)
            self._ends = ends.pop_all()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    def answers(self, queries: Sequence[Query]) -> list[Answer | Refused]:
        """Answer each query, or say why not: one forward pass for all, so that a service can gather them."""
        pictures = [self._seen(query) for query in queries]
        embedded = iter(self._embed([seen for seen in pictures if isinstance(seen, Seen)]))
        found: list[Answer | Refused] = []
        for query, seen in zip(queries, pictures, strict=True):
            vector, attention = next(embedded) if isinstance(seen, Seen) else (None, None)
            try:
                found.append(self._answer(query, seen, vector, attention))
            except Refused as refusal:
                found.append(refusal)
        return found

    def answer(self, query: Query) -> Answer:
        """Answer one query. Raises Refused."""
        (found,) = self.answers([query])
        if isinstance(found, Refused):
            raise found
        return found

    def _seen(self, query: Query) -> Seen | Refused | None:
        """Return what the network has to look at; None for an indexed image whose picture is not wanted."""
        try:
            if query.sample_id is not None:
                return self.originals.seen(query.sample_id) if query.overlay else None
            (image,) = self._decoder.decode([query.image])
            if isinstance(image, Unreadable):
                return Refused(f"the image cannot be used: {image}")
            return of_image(image, "query", self._steps)
        except Refused as refusal:
            return refusal if query.sample_id is None else None  # without its picture it can still be searched

    @torch.no_grad()
    def _embed(self, pictures: Sequence[Seen]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Return the (D,) vector and the (h, w) attention map, if the network has one, of each picture."""
        if not pictures:
            return []
        device = next(self._network.parameters()).device
        pixels = np.ascontiguousarray(np.stack([seen.pixels for seen in pictures]).transpose(0, 3, 1, 2))
        images = normalise(torch.from_numpy(pixels).to(device), self._transform)
        embedded = self._network(images.contiguous(memory_format=torch.channels_last))
        vectors = self.gallery.partition.normalize(embedded.vectors.float()).cpu().numpy()
        if embedded.maps is None:
            return [(vector, None) for vector in vectors]
        return list(zip(vectors, embedded.maps.float().mean(dim=1).cpu().numpy(), strict=True))

    def _answer(
        self, query: Query, seen: Seen | Refused | None, vector: np.ndarray | None, attention: np.ndarray | None
    ) -> Answer:
        if isinstance(seen, Refused):
            raise seen
        self._check(query)
        if query.sample_id is not None:
            vector = self.images.vectors[self._row(query.sample_id)]
        assert vector is not None
        if not np.isfinite(vector).all():
            raise Refused("the network gives no finite vector for this image")
        asked = _Asked(query, vector, seen, attention)
        group, removed = self._excluded(asked)
        wants = [Want(query.k, removed, query.subspaces), Want(1, removed)]
        ranked, nearest = self.gallery.nearest(np.stack([vector, vector]), wants)
        neighbours = self._neighbours(asked, ranked)
        picture = as_picture(seen.pixels) if query.overlay and seen else None
        return Answer(
            neighbours=neighbours,
            vote=vote(neighbours),
            subspaces=list(query.subspaces or range(self.gallery.partition.num_subspaces)),
            excluded_group=group,
            out_of_distribution=self._novelty(nearest),
            picture=encoded(picture) if picture else None,
            attention=encoded(overlay(picture, attention))
            if query.overlay and picture and attention is not None
            else None,
        )

    def _check(self, query: Query) -> None:
        num_subspaces = self.gallery.partition.num_subspaces
        if any(not 0 <= k < num_subspaces for k in query.subspaces) or len(set(query.subspaces)) < len(query.subspaces):
            raise Refused(f"subspaces are numbers from 0 to {num_subspaces - 1}, each once at most", 422)
        if query.group and query.group not in self.images.rows_of_group and query.exclude == "group":
            raise Refused(f"no indexed image is of the group '{query.group}'", 404)

    def _row(self, sample_id: int) -> int:
        if sample_id not in self.images.row_of:
            raise Refused(f"no indexed image has the sample id {sample_id}", 404)
        return self.images.row_of[sample_id]

    def _excluded(self, asked: _Asked) -> tuple[str | None, tuple[int, ...]]:
        """Return the group that is left out, if one is known and is to be, and the rows that are removed."""
        query = asked.query
        own = None if query.sample_id is None else self._row(query.sample_id)
        if query.exclude == "none":
            return None, () if own is None else (own,)
        if query.group:
            group = query.group
        else:
            own = self._same(asked.vector) if own is None else own
            group = "" if own is None else self.images.groups[own]
        rows = set(self.images.rows_of_group.get(group, ())) | ({own} if own is not None else set())
        return group or None, tuple(sorted(rows))

    def _same(self, vector: np.ndarray) -> int | None:
        """Return the indexed image that a query is, by its vector."""
        ((rows, distances),) = self.gallery.nearest(vector[None], [Want(1)])
        return int(rows[0]) if len(rows) and distances[0] <= SAME else None

    def _neighbours(self, asked: _Asked, ranked: Ranked) -> list[Neighbour]:
        rows, distances = ranked
        parts = self.gallery.by_subspace(asked.vector, rows)
        images = self.images
        return [
            Neighbour(
                sample_id=int(images.sample_ids[row]),
                split=images.splits[row],
                label=images.classes[row],
                group=images.groups[row],
                path=images.paths[row],
                distance=round(float(distance), 6),
                by_subspace=[round(float(value), 6) for value in part],
            )
            for row, distance, part in zip(rows, distances, parts, strict=True)
        ]

    def _novelty(self, nearest: Ranked) -> Novelty | None:
        limit, (_, distances) = self.manifest.novelty, nearest
        if limit is None or not len(distances):
            return None
        distance = float(distances[0])
        return Novelty(
            flag=distance > limit.distance, distance=distance, threshold=limit.distance, quantile=limit.quantile
        )


def vote(neighbours: Sequence[Neighbour]) -> list[Vote]:
    """Return the share of each label, the most frequent first, ties in the order of the nearest."""
    counts = Counter(neighbour.label for neighbour in neighbours)
    return [Vote(label=label, share=count / len(neighbours)) for label, count in counts.most_common()]
