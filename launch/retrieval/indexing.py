"""`subspace index`: embed splits with a run's best weights and commit them as something to search in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cluster.vector_index import VectorIndex, kind_for, set_threads
from data_shards import keyed
from data_shards.catalogue import Catalogue
from data_shards.errors import UserError
from data_shards.manifest import manifest_hash
from data_shards.reader import ShardFolder, open_shards
from launch import build
from launch.config import RunConfig
from launch.retrieval.gallery import Gallery, Want
from launch.retrieval.index_folder import (
    FORMAT,
    Manifest,
    Novelty,
    commit,
    put_images,
    put_screen,
    writing,
)
from launch.trained import Trained, alone, config_of, load
from trainer import evaluate
from trainer.checkpoint import tensors_hash

NOVELTY_QUANTILE = 0.99
_NOVELTY_IMAGES = 2000  # the error of a 99 % quantile of so many is a fifth of a per cent


def make_index(
    run: Path,
    shards: Path | None,
    splits: Sequence[str],
    kind: Literal["auto", "exact", "ivf", "hnsw"],
    out: Path,
    tell: Callable[[str], None] = print,
) -> Manifest:
    """Embed `splits` of `shards` (the run's own when None) and write the index folder `out`.

    Raises:
        UserError: no run, no shards, another number of channels, or a run whose network has no vector per image.
        DataIntegrityError: damaged shards or checkpoint.
    """
    config = config_of(run)
    if config.evaluate.by != "retrieval":
        raise UserError(f"{run} was not trained for retrieval, its evaluate.by is {config.evaluate.by}")
    folder = _opened(config, shards)
    with writing(out), alone(config):
        set_threads(1 if config.deterministic else config.launch.threads or 1)
        trained = load(run, config)
        images = _embedded(trained, folder, splits, tell)
        index = VectorIndex.build(kind_for(len(images)) if kind == "auto" else kind, images.vectors)
        tell(f"{index.kind} index of {len(images)} images")
        manifest = Manifest(
            format=FORMAT,
            kind=index.kind,
            num_images=len(images),
            widths=list(trained.partition.widths),
            classes=list(folder.manifest.classes),
            splits=list(dict.fromkeys(splits)),
            weights=weights_of(trained),
            epoch=trained.epoch,
            shards=str(folder.path),
            shards_sha256=manifest_hash(folder.manifest),
            channels=folder.manifest.channels,
            image_size=folder.manifest.image_size,
            fit=folder.manifest.fit,
            novelty=novelty(Gallery(images, trained.partition, index), config.seed),
            images=put_images(out, images),
            screen=None if index.kind == "exact" else put_screen(out, index),
        )
        commit(out, manifest)
    return manifest


def weights_of(trained: Trained) -> str:
    """Return one sha256 of the weights that embed."""
    return tensors_hash(trained.network.state_dict())


def novelty(gallery: Gallery, seed: int) -> Novelty | None:
    """Return how far indexed images, a keyed draw of them, are from their nearest of another group, if any is."""
    images = gallery.images
    rows = keyed.generator(seed, "novelty").permutation(len(images))[:_NOVELTY_IMAGES]
    own = [tuple(images.rows_of_group.get(images.groups[row], [int(row)])) for row in rows]
    ranked = gallery.nearest(images.vectors[rows], [Want(1, removed) for removed in own])
    distances = [float(found[0]) for _, found in ranked if len(found)]
    if not distances:
        return None
    limit = float(np.quantile(distances, NOVELTY_QUANTILE))
    return Novelty(quantile=NOVELTY_QUANTILE, distance=limit, num_images=len(distances))


def _opened(config: RunConfig, shards: Path | None) -> ShardFolder:
    path = Path(config.data.shards) if shards is None else shards
    folder = open_shards(path, verify=config.data.verify)
    if folder.manifest.channels > config.data.channels:
        raise UserError(f"{path} holds colour images, the run was trained on gray ones; build gray shards")
    return folder


def _embedded(trained: Trained, folder: ShardFolder, splits: Sequence[str], tell: Callable[[str], None]) -> Catalogue:
    parts = []
    for name in dict.fromkeys(splits):
        reader = folder.split(name)
        tell(f"embedding {len(reader)} images of the {name} split of {folder.path}")
        options = build.embed_options(trained.config)
        found = evaluate.embed_split(trained.network, reader, trained.partition, options)
        parts.append(Catalogue.of_split(reader, found["vectors"]))
    return Catalogue.joined(parts)
