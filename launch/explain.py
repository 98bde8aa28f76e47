"""`subspace explain`: two images, and where each of them raises their likeness, in a whole embedding and its parts.

Legend: K subspaces, S x S pixels of the evaluation image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_shards.augment import AugmentConfig, Pixels
from data_shards.augment_batch import normalise
from data_shards.decode import Unreadable, load_image, read_bytes
from data_shards.errors import UserError
from data_shards.evaluation import image_view
from data_shards.fitting import fit_image
from data_shards.reader import ShardFolder, open_shards
from data_shards.sandbox import Reply, Sandbox
from launch import build
from launch.config import RunConfig
from launch.trained import Trained, alone, config_of, load
from trainer.segmentation.grad_cam import similarity_maps


@dataclass(frozen=True)
class Seen:
    """An image as the network sees it: (S, S, C) uint8, and what it is called."""

    pixels: Pixels
    name: str


@dataclass(frozen=True)
class Likeness:
    """Cosine of two images, and its maps (h, w) on either: of the whole embedding, or of a subspace."""

    name: str
    cosine: float
    on_query: np.ndarray
    on_match: np.ndarray


def explain(
    run: Path, query: str, match: str, out: Path, split: str = "validation", hold_norms: bool = False
) -> dict[str, float]:
    """Draw the picture to `out`; return the cosines by name: "whole", then "S1" to "SK".

    Raises:
        UserError: no run, no such image, or a place that cannot be written to.
    """
    from launch.report.likeness import likeness_picture

    config = config_of(run)
    folder = _shards(config)
    transform = build.transform(config)
    left, right = (_seen(word, folder, split, transform) for word in (query, match))
    with alone(config):
        likenesses = compare(load(run, config), transform, left, right, hold_norms)
    try:
        out.write_bytes(likeness_picture(left, right, likenesses))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return {found.name: found.cosine for found in likenesses}


def compare(found: Trained, transform: AugmentConfig, query: Seen, match: Seen, hold_norms: bool) -> list[Likeness]:
    """Return the likeness of two images in the whole embedding and in each subspace."""
    device = next(found.network.parameters()).device
    pixels = np.stack([query.pixels, match.pixels]).transpose(0, 3, 1, 2)
    images = normalise(torch.from_numpy(np.ascontiguousarray(pixels)).to(device), transform)
    maps, cosines = similarity_maps(found.network, found.partition, images, images.flip(0), hold_norms)
    names = ["whole", *(f"S{k + 1}" for k in range(found.partition.num_subspaces))]
    (on_query, on_match), numbers = maps.cpu().numpy(), cosines[0].tolist()
    return [Likeness(*one) for one in zip(names, numbers, on_query, on_match, strict=True)]


def _shards(config: RunConfig) -> ShardFolder:
    path = Path(config.data.shards)
    if not path.exists():
        raise UserError(f"there are no shards at {path}: they say how images are cut to size")
    return open_shards(path, verify=False)


def _seen(word: str, folder: ShardFolder, split: str, transform: AugmentConfig) -> Seen:
    """Return an image by its sample id (digits) or its file, through the geometry of the shards and of evaluation."""
    if not word.isdecimal():
        return Seen(image_view(_from_file(Path(word), folder), transform), Path(word).name)
    reader = folder.split(split)
    rows = np.flatnonzero(reader.sample_ids == int(word)) if len(word) < 19 else np.empty(0, np.int64)
    if not len(rows):
        raise UserError(f"The {split} split holds no image with the sample id {word}; for a file write ./{word}")
    return Seen(image_view(reader.image(int(rows[0])), transform), f"{split} {word}")


def _from_file(path: Path, folder: ShardFolder) -> Pixels:
    """Decode an image file in a process of its own, and bring it to the size that the shards have."""

    def decoded(_: int) -> Reply:
        image = load_image(read_bytes(path), folder.manifest.channels)
        return {"shape": image.shape}, image.tobytes()

    with Sandbox(decoded) as sandbox:
        (answer,) = sandbox.run([0])
    if isinstance(answer, Unreadable):
        raise UserError(f"{path}: {answer}")
    image = np.frombuffer(answer[1], dtype=np.uint8).reshape(answer[0]["shape"])
    size = folder.manifest.image_size
    return image if size is None else fit_image(image, size, folder.manifest.fit)
