"""`subspace explain`: two images, and where each of them raises their likeness, in a whole embedding and its parts.

Legend: K subspaces, S x S pixels of the evaluation image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_shards.augment import AugmentConfig
from data_shards.augment_batch import normalise
from data_shards.errors import UserError
from launch import build
from launch.seen import Seen, seen, shards_of
from launch.trained import Trained, alone, config_of, load
from trainer.segmentation.grad_cam import similarity_maps


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
    folder = shards_of(config)
    transform = build.transform(config)
    left, right = (seen(word, folder, split, transform) for word in (query, match))
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
