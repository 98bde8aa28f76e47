"""The pixel side of augmentation: a uint8 batch and its drawn `Parameters` in, a normalised float batch out; torch.

Without a warp, flips and quarter turns only move uint8 pixels, exactly. With one, crop, flips, turns, rotation, zoom,
shear and shift are a single bilinear interpolation, so an image is interpolated once: by `stretch` where rows stay rows
or become columns, else by grid_sample. Brightness, contrast, saturation and hue are together one affine map of the
colours per image, followed by one clamp (torchvision clamps after each of them); the contrast pivot is the mean luma of
the stored image.

A CPU makes a few images at a time, so that what lies between pixels and images stays in its cache.

An image gives the same bits alone and in any batch: everything is elementwise or per image, sums run over integers,
and multiply and add stay separate operations (fused ones may round differently in the tail of a vector loop). So no
bmm, no affine_grid, no addcmul here.

Legend: B images, C channels, S x S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from data_shards.augment import AugmentConfig, Floats, Parameters
from data_shards.errors import UserError
from data_shards.stretch import ordered, planes

Affine = tuple[Floats, Floats]  # scale and offset of every channel, (channels,)
_LUMA = (0.299, 0.587, 0.114)
_CELLS = 2**19  # numbers of images that a CPU makes together


def apply(
    images: Tensor, parameters: Parameters, config: AugmentConfig, warps: bool | None = None, out: Tensor | None = None
) -> Tensor:
    """Return (B, channels, S, S) float32, augmented and normalised, from (B, C, S, S) uint8 on the same device.

    warps: whether to resample along parameters.warp (then the images may have any H x W); None = if configured. out:
    where to put them.
    """
    own, affine = config.of_view, _normalisation(images, config)
    warps = config.warps if warps is None else warps
    out = _room(images, affine, config) if out is None else out
    if warps and not own.recolours:
        _warped(images, parameters.warp, config, affine, out)
    else:
        for part in _parts(out):
            _mapped(_coloured(images[part], parameters[part], config, warps), affine, out[part])
    return _erased(out, parameters.erase) if own.erase else out


def normalise(images: Tensor, config: AugmentConfig, out: Tensor | None = None) -> Tensor:
    """Return (B, channels, S, S) float32, normalised and nothing else, from (B, C, S, S) uint8."""
    affine = _normalisation(images, config)
    out = _room(images, affine, config) if out is None else out
    for part in _parts(out):
        _mapped(ordered(images[part]).float(), affine, out[part])
    return out


def _room(images: Tensor, affine: Affine, config: AugmentConfig) -> Tensor:
    """Return (B, channels of the map, S, S) of any values."""
    return images.new_empty((len(images), len(affine[0]), config.size, config.size), dtype=torch.float32)


def _parts(out: Tensor) -> Iterator[slice]:
    """Yield the parts of a batch that are made together."""
    step = max(1, _CELLS // math.prod(out.shape[1:]) if out.is_cpu else len(out))
    return (slice(start, start + step) for start in range(0, len(out), step))


def _normalisation(images: Tensor, config: AugmentConfig) -> Affine:
    """Return what makes (x / 255 - mean) / std of every channel; raises UserError for images of other channels."""
    if images.shape[1] not in (1, config.channels):
        raise UserError(
            f"images have {images.shape[1]} channels, augment.channels is {config.channels}: make them equal"
        )
    mean, std = (np.resize(np.array(x), config.channels) for x in config.normalisation)
    return 1 / (255 * std), -mean / std


def _mapped(floats: Tensor, affine: Affine, out: Tensor) -> None:
    """Write scale * floats + offset to out, one channel repeated to those of the map; may overwrite floats."""
    scale, offset = (_column(each[None], floats) for each in affine)
    scaled = floats.mul_(scale) if floats.shape[1] == scale.shape[1] else floats * scale
    torch.add(scaled, offset, out=out)


def _column(values: Floats, like: Tensor) -> Tensor:
    """Return (B, n, 1, 1) float32 on the device of `like` from (B, n)."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device, non_blocking=True)[:, :, None, None]


def _moved(images: Tensor, parameters: Parameters) -> Tensor:
    """Return the images flipped, then turned counter-clockwise by quarter turns: pixels are copied, never mixed."""
    kinds = parameters.hflip + 2 * parameters.vflip + 4 * parameters.turns
    if not kinds.any():
        return images
    out = torch.empty_like(images)
    for kind in np.unique(kinds):
        rows = torch.from_numpy(np.flatnonzero(kinds == kind)).to(images.device)
        part = images[rows]
        flips = [axis for axis, bit in ((3, 1), (2, 2)) if kind & bit]
        part = part.flip(flips) if flips else part
        out[rows] = torch.rot90(part, int(kind) // 4, (2, 3))
    return out


def _warped(images: Tensor, matrices: Floats, config: AugmentConfig, affine: Affine, out: Tensor) -> Tensor:
    """Write the images (B, C, H, W), resampled along matrices (B, 3, 3) and mapped, to out (B, channels, S, S)."""
    zero = (matrices == 0) & images.is_cpu
    straight, turned = zero[:, 0, 1] & zero[:, 1, 0], zero[:, 0, 0] & zero[:, 1, 1]
    slanted = ~(straight | turned)
    if straight.all():
        _stretched(images, matrices, config, affine, out)
    elif turned.all():
        _stretched(images.transpose(2, 3), matrices[:, [1, 0, 2]], config, affine, out)
    elif slanted.all():
        for part in _parts(out):
            grid = sampling_grid(matrices[part], config.size, images.device)
            floats = ordered(images[part]).float()
            floats = functional.grid_sample(floats, grid, "bilinear", config.padding, align_corners=False)
            _mapped(floats, affine, out[part])
    else:
        for kind in (straight, turned & ~straight, slanted):
            rows = torch.from_numpy(np.flatnonzero(kind)).to(images.device)
            out[rows] = _warped(images[rows], matrices[kind], config, affine, torch.empty_like(out[: len(rows)]))
    return out


def _stretched(images: Tensor, matrices: Floats, config: AugmentConfig, affine: Affine, out: Tensor) -> None:
    """Do what `_warped` does, along matrices that keep rows rows: each plane is mapped while it is in the cache."""
    scale, offset = affine
    for part, channel, floats in planes(images, matrices, scale, config.size, config.padding):
        torch.add(floats, float(offset[channel]), out=out[part, channel])


def sampling_grid(matrices: Floats, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (B, S, S, 2) source coordinates of every output pixel, from (B, 3, 3) output -> source matrices."""
    m = torch.from_numpy(matrices.astype(np.float32)).to(device)[:, :, :, None, None]
    centres = (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
    x, y = centres[None, None, :], centres[None, :, None]
    return torch.stack([(m[:, i, 0] * x + m[:, i, 1] * y) + m[:, i, 2] for i in (0, 1)], dim=-1)


def _luma(images: Tensor) -> Tensor:
    """Return (B, 1, 1, 1) float64 mean luma of uint8 images, from exact integer sums."""
    means = images.sum(dim=(2, 3), keepdim=True, dtype=torch.int64).double() / (images.shape[2] * images.shape[3])
    if images.shape[1] == 1:
        return means
    return means[:, :1] * _LUMA[0] + means[:, 1:2] * _LUMA[1] + means[:, 2:] * _LUMA[2]


def colour_matrices(colour: Floats) -> Floats:
    """Return (B, 3, 3) maps of RGB for brightness, contrast, saturation and a turn of the hue (about the gray axis)."""
    gain, saturation = colour[:, 0] * colour[:, 1], colour[:, 2, None, None]
    saturate = saturation * np.eye(3) + (1 - saturation) * np.array(_LUMA)
    cos, sin = np.cos(colour[:, 3])[:, None, None], np.sin(colour[:, 3])[:, None, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = cos * np.eye(3) + (1 - cos) / 3 + sin * cross
    mixed = (turn[:, :, :, None] * saturate[:, None, :, :]).sum(axis=2)
    return np.asarray(gain[:, None, None] * mixed)


def _coloured(images: Tensor, parameters: Parameters, config: AugmentConfig, warps: bool) -> Tensor:
    """Return (B, C, S, S) float32 in 0..255, moved or resampled, and with changed colours if that is configured."""
    own, images = config.of_view, images if warps else ordered(images)
    pivot = _luma(images) if own.contrast else None
    if warps:
        same = np.ones(images.shape[1]), np.zeros(images.shape[1])
        floats = _warped(images, parameters.warp, config, same, _room(images, same, config))
    else:
        floats = _moved(images, parameters).float()
    return _recoloured(floats, pivot, parameters.colour, mixes=own.mixes_colours) if own.recolours else floats


def _recoloured(floats: Tensor, pivot: Tensor | None, colour: Floats, mixes: bool) -> Tensor:
    """Return the images (B, C, S, S) in 0..255 with changed colours, clamped; may overwrite its input.

    pivot: (B, 1, 1, 1) mean luma, None if the contrast stays; mixes: whether saturation or hue mix the channels.
    """
    offset: Tensor | float = 0.0
    if pivot is not None:
        offset = (pivot * _column(((1 - colour[:, 1]) * colour[:, 0])[:, None], floats)).float()
    if floats.shape[1] == 1 or not mixes:
        return floats.mul_(_column((colour[:, 0] * colour[:, 1])[:, None], floats)).add_(offset).clamp_(0, 255)
    matrices = colour_matrices(colour)
    out = torch.empty_like(floats)
    for i in range(3):
        row = [_column(matrices[:, i, j, None], floats)[:, 0] for j in range(3)]
        torch.mul(floats[:, 0], row[0], out=out[:, i])
        out[:, i].add_(floats[:, 1] * row[1]).add_(floats[:, 2] * row[2])
    return out.add_(offset).clamp_(0, 255)


def _erased(floats: Tensor, boxes: Floats) -> Tensor:
    """Return the normalised images with the rectangles set to 0, the mean colour."""
    centres = (torch.arange(floats.shape[-1], device=floats.device, dtype=torch.float32) + 0.5) / floats.shape[-1]
    left, top, right, bottom = (_column(boxes[:, i, None], floats)[:, :, 0] for i in range(4))
    inside_x, inside_y = (centres >= left) & (centres < right), (centres >= top) & (centres < bottom)  # (B, 1, S)
    return floats.masked_fill_(inside_y[:, :, :, None] & inside_x[:, :, None, :], 0.0)


def warp_masks(masks: list[npt.NDArray[np.uint8]], geometry: Floats, size: int) -> Tensor:
    """Return (B, S, S) uint8 masks seen through the geometry (B, 3, 3), nearest pixel, 0 outside the image."""
    grid = sampling_grid(geometry, size)
    out = [
        functional.grid_sample(torch.from_numpy(mask)[None, None].float(), grid[i : i + 1], "nearest", "zeros", False)
        for i, mask in enumerate(masks)
    ]
    return torch.cat(out)[:, 0].to(torch.uint8)
