"""The pixel side of augmentation: a uint8 batch and its drawn `Parameters` in, a normalised float batch out; torch.

Without a warp, flips and quarter turns only move uint8 pixels, exactly. With one, flips, turns, rotation, zoom, shear
and shift are a single bilinear grid_sample, so an image is interpolated once. Brightness, contrast, saturation and hue
are together one affine map of the colours per image, followed by one clamp (torchvision clamps after each of them);
the contrast pivot is the mean luma of the stored image.

An image gives the same bits alone and in any batch: everything is elementwise or per image, sums run over integers,
and multiply and add stay separate operations (fused ones may round differently in the tail of a vector loop). So no
bmm, no affine_grid, no addcmul here.

Legend: B images, C channels, S x S pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from data_shards.augment import AugmentConfig, Floats, Parameters
from data_shards.errors import UserError

_LUMA = (0.299, 0.587, 0.114)


def apply(
    images: Tensor, parameters: Parameters, config: AugmentConfig, warps: bool | None = None, out: Tensor | None = None
) -> Tensor:
    """Return (B, channels, S, S) float32, augmented and normalised, from (B, C, S, S) uint8 on the same device.

    warps: whether to resample along parameters.warp (then the images may have any H x W); None = if configured. out:
    where to put them.
    """
    own = config.of_view
    pivot = _luma(images) if own.contrast else None
    warps = config.warps if warps is None else warps
    floats = _warped(images, parameters, config) if warps else _moved(images, parameters).float()
    if own.recolours:
        floats = _recoloured(floats, pivot, parameters.colour, mixes=own.mixes_colours)
    floats = _normalised(floats, config, out)
    return _erased(floats, parameters.erase) if own.erase else floats


def normalise(images: Tensor, config: AugmentConfig, out: Tensor | None = None) -> Tensor:
    """Return (B, channels, S, S) float32, normalised and nothing else, from (B, C, S, S) uint8."""
    return _normalised(images.float(), config, out)


def _normalised(floats: Tensor, config: AugmentConfig, out: Tensor | None) -> Tensor:
    """Return (x / 255 - mean) / std per channel; gray images are repeated to `channels`."""
    if floats.shape[1] not in (1, config.channels):
        raise UserError(
            f"images have {floats.shape[1]} channels, augment.channels is {config.channels}: make them equal"
        )
    mean, std = (np.resize(np.array(x), config.channels) for x in config.normalisation)
    scale, offset = (_column(x[None], floats) for x in (1 / (255 * std), -mean / std))
    if out is None and floats.shape[1] == config.channels:
        out = floats
    return torch.mul(floats, scale, out=out).add_(offset)


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


def _warped(images: Tensor, parameters: Parameters, config: AugmentConfig) -> Tensor:
    """Return (B, C, S, S) float32, resampled along parameters.warp."""
    grid = sampling_grid(parameters.warp, config.size, images.device)
    return functional.grid_sample(images.float(), grid, "bilinear", config.padding, align_corners=False)


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
