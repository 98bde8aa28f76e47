"""Segmentations that know nothing of the network: whoever does not beat them has segmented nothing.

Legend: n images, C channels, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data_shards.augment import AugmentConfig
from data_shards.loader import eval_images
from data_shards.otsu import otsu
from data_shards.reader import SplitReader
from trainer.segmentation.protocol import MapMaker, Maps, Method, Rows

_LUMA = (0.299, 0.587, 0.114)


def grey_levels(images: Tensor, config: AugmentConfig) -> Tensor:
    """Return (n, S, S) float32 luma, 0 black to 1 white, of normalised images (n, C, S, S)."""
    weights = torch.tensor(_LUMA if config.channels == 3 else (1.0,))
    return (_shades(images, config) * weights[:, None, None]).sum(dim=1).clamp(0, 1)


def green_levels(images: Tensor, config: AugmentConfig) -> Tensor:
    """Return (n, S, S) float32, the green of normalised images (n, 3, S, S), in which vessels are darkest."""
    return _shades(images, config)[:, 1].clamp(0, 1)


def _shades(images: Tensor, config: AugmentConfig) -> Tensor:
    mean, std = (torch.tensor(np.resize(x, config.channels), dtype=torch.float32) for x in config.normalisation)
    return images * std[:, None, None] + mean[:, None, None]


def parted(grey: Tensor) -> Tensor:
    """Return 1 where (n, S, S) grey levels are above their image's Otsu shade, else 0."""
    shades = (grey * 255).round().to(torch.uint8).numpy()
    return torch.from_numpy(np.stack([shade > otsu(shade) for shade in shades])).float()


def simple_methods(config: AugmentConfig) -> list[Method]:
    """Return: all foreground; one grey level for all images; one level of green, for colour images; Otsu's of each
    image. Dark or bright, as tuning says."""

    def maker(of_grey: Callable[[Tensor], Tensor], levels: Callable[..., Tensor] = grey_levels) -> MapMaker:
        def make(reader: SplitReader, rows: Rows) -> Maps:
            return lambda places: of_grey(levels(eval_images(reader, rows[places], config), config))

        return make

    def one_level(levels: Callable[..., Tensor]) -> dict[str, MapMaker]:
        return {"dark": maker(lambda grey: 1 - grey, levels), "bright": maker(lambda grey: grey, levels)}

    green = [Method("green_level", one_level(green_levels))] if config.channels == 3 else []
    return [
        Method("everything", {"all": maker(torch.ones_like)}, threshold=0.5),
        Method("grey_level", one_level(grey_levels)),
        *green,
        Method("otsu", {"dark": maker(lambda grey: 1 - parted(grey)), "bright": maker(parted)}, threshold=0.5),
    ]
