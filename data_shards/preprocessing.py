"""How an image from anywhere comes to a network: first to the form that the shards have, then as evaluation sees it.

The same steps for an image file beside a run, a notebook, and an exported network, whose files describe them.

Legend: H x W pixels of an image, C channels, S x S pixels seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_shards.augment import AugmentConfig, Pixels
from data_shards.evaluation import image_view
from data_shards.fitting import fit_image


@dataclass(frozen=True)
class Preprocessing:
    """Images are decoded to `channels`, brought to `size` by the rule `fit` (None: left as they are), then `view`ed."""

    channels: int
    size: int | None
    fit: str
    view: AugmentConfig

    def stored(self, image: Pixels) -> Pixels:
        """Return an (H, W, channels) uint8 image as shards hold it."""
        return image if self.size is None else fit_image(image, self.size, self.fit)

    def __call__(self, image: Pixels) -> Pixels:
        """Return (S, S, C) uint8 of an (H, W, channels) image; what is left is `augment_batch.normalise`."""
        return image_view(self.stored(image), self.view)

    def described(self) -> dict[str, Any]:
        """Return every number of it, and the steps in words, as JSON."""
        mean, std = self.view.normalisation
        return {
            "channels": self.channels,
            "fit": self.fit,
            "fit_size": self.size,
            "resize": self.view.resize,
            "size": self.view.size,
            "network_channels": self.view.channels,
            "mean": list(mean),
            "std": list(std),
            "steps": self.steps(),
        }

    def steps(self) -> list[str]:
        """Return what is to be done, one step after the other, for people who write it in another language."""
        view, shapes = self.view, {"crop": "the largest centred square", "pad": "all on black", "stretch": "both sides"}
        fitted = f"bring {shapes[self.fit]} to {self.size} x {self.size} pixels, bicubic and antialiased"
        shorter = view.resize or f"{round(view.size * 256 / 224)} if it is that long, else {view.size}"
        repeated = ", repeated to 3" if self.channels < view.channels else ""
        return [
            f"decode upright to 8 bits and {self.channels} channel(s){repeated}",
            *([] if self.size is None else [fitted]),
            f"resize the shorter side to {shorter} and crop the centre of {view.size} x {view.size} pixels, in one"
            " bilinear and antialiased step",
            "divide by 255, subtract the mean, divide by std, per channel; order axes as batch, channel, row, column",
        ]
