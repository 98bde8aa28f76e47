"""A trained network as a function of images, for notebooks and scikit-learn: five lines, and no command line.

    from launch.embedder import Embedder
    embedder = Embedder.from_run("runs/mine")
    vectors = embedder.transform(["a.png", "b.png"])

Images take the way that those of the run took. Files are decoded in processes of their own, within limits, since a file
may come from anywhere; what has been decoded already, arrays and pictures of Pillow, is trusted.

Legend: N images, H x W pixels, C channels, S x S pixels seen, D embedding width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from data_shards.augment import Pixels
from data_shards.augment_batch import normalise
from data_shards.decode import Unreadable, check_size, load_image, read_bytes, to_array, upright
from data_shards.errors import UserError
from data_shards.preprocessing import Preprocessing
from data_shards.sandbox import Reply, Sandbox
from launch import build, exported
from launch.exported import Ready
from launch.seen import preprocessing, shards_of
from launch.trained import alone, config_of, load, unchanged
from trainer import evaluate

MAX_DECODERS = 4


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images -> (N, D) float32 of unit length, by the best network of a run.

    As scikit-learn has it, the constructor keeps its arguments and nothing else, so that copies are free, may go to
    other processes, and open the run where they are used. There is nothing to fit.

    Args:
        run: a run folder, or what `subspace export` wrote.
        batch_size: images that go through the network together.
        device: "cpu", "cuda", "cuda:1", ...; the GPU, if there is one, when not given.
    """

    def __init__(self, run: str | os.PathLike[str], batch_size: int = 64, device: str | None = None) -> None:
        self.run = run
        self.batch_size = batch_size
        self.device = device

    @classmethod
    def from_run(cls, run: str | os.PathLike[str], batch_size: int = 64, device: str | None = None) -> Embedder:
        """Return an embedder whose network is loaded.

        Raises:
            UserError: no such folder, no checkpoint in it yet, or a network that gives no vectors of images.
        """
        made = cls(run, batch_size, device)
        made._ready()
        return made

    @property
    def num_dims(self) -> int:
        """D."""
        return self._ready().partition.num_dims

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the subspaces, which are columns of the vectors one after the other; they sum to D."""
        return self._ready().partition.widths

    def fit(self, images: object = None, labels: object = None) -> Embedder:
        """Do nothing: the network is trained."""
        return self

    def transform(self, images: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return (N, D) float32 unit vectors.

        Args:
            images: paths of JPEG, PNG or BMP files, pictures of Pillow, or uint8 arrays (H, W), (H, W, 1), (H, W, 3) or
                (H, W, 4), also mixed; or one array of all, (N, H, W) or (N, H, W, C).

        Raises:
            UserError: something else, or a file that cannot be decoded; it is named.
        """
        ready, items = self._ready(), _listed(images)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size!r}: use a number of images, 1 or more")
        found = [np.empty((0, ready.partition.num_dims), np.float32)]
        views = _views(items, ready.preprocessing)
        while batch := list(islice(views, self.batch_size)):
            found.append(_vectors(ready, np.stack(batch)))
        return np.concatenate(found)

    def _ready(self) -> Ready:
        """Return the network, opened at the first use and whenever the arguments have changed."""
        key = (os.fspath(self.run), self.device)
        opened: tuple[Any, Ready] | None = self.__dict__.get("_opened")
        if opened is None or opened[0] != key:
            opened = self._opened = (key, _open(Path(self.run), self.device))
        return opened[1]

    @property
    def _n_features_out(self) -> int:
        return self.num_dims

    def __getstate__(self) -> dict[str, Any]:
        """Leave the network out of copies: it is where the run is."""
        return {name: value for name, value in super().__getstate__().items() if name != "_opened"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.no_validation = False, True
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = False, True, True
        return tags


def _open(path: Path, device: str | None) -> Ready:
    with unchanged():
        if exported.is_exported(path):
            ready = exported.read(path, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        else:
            ready = _of_run(path, device)
    exported.check_vectors(ready.config)
    return ready


def _of_run(run: Path, device: str | None) -> Ready:
    config = config_of(run)
    steps = preprocessing(shards_of(config).manifest, build.transform(config))
    with alone(config):
        found = load(run, config)
    network = found.network if device is None else found.network.to(device)
    return Ready(config, network, found.partition, steps)


def _listed(images: Any) -> list[Any]:
    """Return the images one by one."""
    if isinstance(images, (str, os.PathLike, Image.Image)) or not hasattr(images, "__iter__"):
        raise UserError(f"images: give a list, [{type(images).__name__}], also for a single one")
    return list(images)


def _views(items: list[Any], steps: Preprocessing) -> Iterator[Pixels]:
    """Yield (S, S, C) uint8 of every image, in order; files are decoded some images ahead."""
    files = [os.fspath(item) for item in items if isinstance(item, (str, os.PathLike))]

    def decoded(place: int) -> Reply:
        view = steps(load_image(read_bytes(Path(files[place])), steps.channels))
        return {"shape": view.shape}, view.tobytes()

    with Sandbox(decoded, min(MAX_DECODERS, os.cpu_count() or 1)) as sandbox:
        answers = zip(files, sandbox.run(range(len(files))), strict=True)
        for place, item in enumerate(items):
            if not isinstance(item, (str, os.PathLike)):
                yield steps(_pixels(item, place, steps.channels))
                continue
            file, answer = next(answers)
            if isinstance(answer, Unreadable):
                raise UserError(f"{file}: {answer}")
            yield np.frombuffer(answer[1], dtype=np.uint8).reshape(answer[0]["shape"])


def _pixels(item: Any, place: int, channels: int) -> Pixels:
    """Return (H, W, channels) uint8 of a picture or an array that is in memory already."""
    if isinstance(item, np.ndarray):
        item = _picture(item, place)
    if not isinstance(item, Image.Image):
        raise UserError(f"image {place} is a {type(item).__name__}; give a path, a picture of Pillow or a uint8 array")
    try:
        check_size(item.height, item.width)
    except Unreadable as error:
        raise UserError(f"image {place}: {error}") from None
    return to_array(upright(item), channels)


def _picture(array: npt.NDArray[Any], place: int) -> Image.Image:
    plane = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint8 or not (plane.ndim == 2 or (plane.ndim == 3 and plane.shape[2] in (3, 4))):
        raise UserError(
            f"image {place} is an array {array.shape} of {array.dtype}; give uint8 from 0 to 255, as (H, W), (H, W, 1),"
            " (H, W, 3) or (H, W, 4)"
        )
    return Image.fromarray(np.ascontiguousarray(plane))


def _vectors(ready: Ready, views: Pixels) -> npt.NDArray[np.float32]:
    """Return (B, D) of (B, S, S, C) pixels."""
    device = next(ready.network.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2))).to(device)
    images = normalise(pixels, ready.preprocessing.view)
    with torch.no_grad():
        embedded = evaluate.embed(ready.network, images, ready.config.evaluate.precision)
        vectors: npt.NDArray[np.float32] = ready.partition.normalize(embedded.vectors.float()).cpu().numpy()
    return vectors
