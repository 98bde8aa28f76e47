"""A small U-Net, trained on masks that somebody else made: maps at a threshold, or, as the ceiling, the true ones.

Ronneberger et al. 2015, "U-Net" (https://arxiv.org/abs/1505.04597), MONAI's BasicUNet with group norm, and MONAI's sum
of soft Dice and cross-entropy. Start weights, order and flips are keyed: equal seed, equal labels, equal network.

Legend: N images, n in a batch, C channels, S x S pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards import keyed
from data_shards.augment import AugmentConfig
from data_shards.errors import UserError
from data_shards.loader import eval_images
from data_shards.reader import SplitReader
from trainer.backbones.initialise import fill_normal
from trainer.optim import Rates
from trainer.segmentation.protocol import MapMaker, Maps, Places, Rows

Labels = Callable[[Rows], Tensor]  # places among the training rows (n,) -> (n, S, S) bool
_LEAST_PIXELS = 16  # four halvings
_GROUPS = 4


@dataclass(frozen=True)
class UNetOptions:
    """Schedule and size; `widths` as MONAI's `features`: five levels and the last layer, multiples of 4."""

    epochs: int = 30
    batch_size: int = 16
    lr: float = 2e-3
    widths: tuple[int, int, int, int, int, int] = (16, 16, 32, 64, 128, 16)
    seed: int = 0


def unet(in_channels: int, options: UNetOptions) -> nn.Module:
    """Return (n, C, S, S) -> logits (n, 1, S, S), with keyed start weights; S is at least 16."""
    from monai.networks.nets import BasicUNet

    with redirect_stdout(io.StringIO()):  # it prints its widths, also where JSON is to be printed
        network = BasicUNet(
            2, in_channels, 1, features=options.widths, norm=("group", {"num_groups": _GROUPS}), upsample="deconv"
        )
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            # a transposed convolution of stride 2 has one tap in four on each pixel
            taps = math.prod(layer.kernel_size) / math.prod(layer.stride)
            std = math.sqrt(2.0 / (layer.in_channels * (taps if layer.transposed else math.prod(layer.kernel_size))))
            fill_normal(layer.weight, std, keyed.generator(options.seed, "init", "unet", name))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def batches(num_rows: int, sample_ids: Rows, options: UNetOptions) -> Iterator[tuple[float, Rows, Tensor]]:
    """Yield (progress in epochs, places (n,), flips (n, 2) bool: left-right, up-down) of every step."""
    steps = math.ceil(num_rows / options.batch_size)
    for epoch in range(options.epochs):
        order = keyed.generator(options.seed, "unet order", epoch).permutation(num_rows)
        drawn = keyed.uniform(keyed.fold(keyed.key(options.seed, "unet flips", epoch), sample_ids), 2) < 0.5
        for step, places in enumerate(np.array_split(order, steps)):
            yield epoch + step / steps, places, torch.from_numpy(drawn[places])


def flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Return (n, ..., S, S) with the images that `flips` (n, 2) names turned left-right and up-down."""
    for column, axis in ((0, -1), (1, -2)):
        shape = (-1,) + (1,) * (images.ndim - 1)
        images = torch.where(flips[:, column].view(shape), images.flip(axis), images)
    return images


def train_unet(
    reader: SplitReader,
    rows: Rows,
    labels: Labels,
    config: AugmentConfig,
    options: UNetOptions,
    device: torch.device,
    certainty: Labels | None = None,
) -> nn.Module:
    """Return a U-Net trained on the images of some rows with `labels`; no mask of the reader is looked at.

    `certainty` gives pixels weights in [0, 1], of labels that are not sure; the cross-entropy is weighted by them,
    and the soft Dice looks at probabilities and labels times them.

    Raises:
        UserError: images of fewer than 16 pixels.
    """
    from monai.losses import DiceCELoss

    if config.size < _LEAST_PIXELS:
        raise UserError(f"a U-Net needs images of {_LEAST_PIXELS} pixels at least, data.image_size is {config.size}")
    network = unet(config.channels, options).to(device).train()
    loss_of, rates = DiceCELoss(sigmoid=True), Rates("cosine", options.epochs)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.lr)
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        for progress, places, flips in batches(len(rows), reader.sample_ids[rows], options):
            images = flipped(eval_images(reader, rows[places], config), flips).to(device)
            masks = flipped(labels(places), flips)[:, None].to(device)
            optimiser.param_groups[0]["lr"] = options.lr * rates.factor(progress)
            logits = network(images)
            if certainty is None:
                loss = loss_of(logits, masks.float())
            else:
                weights = flipped(certainty(places), flips)[:, None].to(device)
                loss = weighted_loss(logits, masks.float(), weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return network.eval()


def weighted_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of weighted cross-entropy and soft Dice (), of logits, masks and weights (n, 1, S, S)."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, weights, reduction="sum") / weights.sum().clamp(min=1)
    p, g = logits.sigmoid() * weights, masks * weights
    overlap = (2 * (p * g).sum(dim=(1, 2, 3)) + 1e-5) / ((p + g).sum(dim=(1, 2, 3)) + 1e-5)
    return entropy + (1 - overlap).mean()


def probabilities(network: nn.Module, config: AugmentConfig, device: torch.device) -> MapMaker:
    """Return the maker of maps (n, S, S) in (0, 1) of a trained U-Net."""

    def make(reader: SplitReader, rows: Rows) -> Maps:
        @torch.no_grad()
        def maps(places: Places) -> Tensor:
            images = eval_images(reader, rows[places], config).to(device)
            return network(images)[:, 0].float().sigmoid().cpu()

        return maps

    return make
