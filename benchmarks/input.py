"""Images per second of one core: our shards, Pillow on files as ImageFolder loads them, WebDataset and litData.

    python benchmarks/input.py [docs/results/performance/input.json]

The same images for all (`IMAGES` of the environment: a folder of JPEG files of 224 px; else HAM10000's part in
`SUBSPACE_DATA`), in batches of 64 normalised float32 tensors, at 64 and 224 px, in the one process. "plain": nothing
but resizing. "augmented": a random crop of 50 to 100 % of the area and a flip, half of the time; ours by keyed draws
and one warp of the batch, the others' by one Pillow resize of the crop box per image, as torchvision does it.

What is stored: "files" JPEG; "raw" pixels of the final size, in our shards, and as .npy or tensors in the others';
"jpeg" the files' own bytes. WebDataset and litData are used where they can be imported, and named as missing where not;
MosaicML Streaming imports transformers and is left out. Ours checks every image's crc32, the others check nothing. All
but ours and files read in stored order.

Rates are of seconds of the processor; `NUM_IMAGES` and `NUM_ROUNDS` of the environment make it shorter.
"""

from __future__ import annotations

from benchmarks.timing import write  # isort: skip  (limits threads before numpy is imported)

import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_shards.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from data_shards.build import build
from data_shards.loader import train_loader
from data_shards.reader import SplitReader, open_shards

BATCH, SIZES = 64, (64, 224)
NUM_IMAGES = int(os.environ.get("NUM_IMAGES", "1024"))
NUM_ROUNDS = int(os.environ.get("NUM_ROUNDS", "5"))
MEAN, STD = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))


def files() -> list[Path]:
    """Return NUM_IMAGES paths; a short folder is repeated."""
    folder = Path(os.environ.get("IMAGES") or Path(os.environ["SUBSPACE_DATA"]) / "ham10000_part" / "images")
    found = sorted(folder.rglob("*.jpg"))[:NUM_IMAGES]
    return (found * (NUM_IMAGES // len(found) + 1))[:NUM_IMAGES]


def box_of(rng: np.random.Generator, width: int, height: int) -> tuple[float, float, float, float]:
    """Return a random crop of half to all of the area, of aspect ratio 3/4 to 4/3, as torchvision draws it."""
    area, ratio = rng.uniform(0.5, 1) * width * height, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(np.sqrt(area * ratio), width), min(np.sqrt(area / ratio), height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, left + w, top + h


def tensor_of(image: Image.Image, size: int, rng: np.random.Generator | None) -> torch.Tensor:
    """Return (3, S, S) float32 of a picture, resized or augmented and normalised, one by one."""
    if rng is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box_of(rng, *image.size))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.float().div_(255).sub_(MEAN).div_(STD)


def tensor_of_pixels(pixels: Any, size: int, rng: np.random.Generator | None) -> torch.Tensor:
    """Return (3, S, S) of (S, S, 3) uint8 that has its final size already."""
    pixels = np.asarray(pixels)
    if rng is not None:
        return tensor_of(Image.fromarray(pixels), size, rng)
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255).sub_(MEAN).div_(STD)


def stacked(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield batches."""
    held = []
    for each in tensors:
        held.append(each)
        if len(held) == BATCH:
            yield torch.stack(held)
            held = []


def ours(reader: SplitReader, size: int, augmented: bool) -> Iterator[torch.Tensor]:
    config = AugmentConfig(size, hflip=True, crop_scale=(0.5, 1.0)) if augmented else AugmentConfig(size, resize=size)
    rows = np.random.default_rng(0).permutation(len(reader))[: len(reader) // BATCH * BATCH].reshape(-1, BATCH)
    for batch in train_loader(reader, [(None, each) for each in rows], config, 0, 0):
        yield batch.images[:, 0]


def pillow(paths: list[Path], size: int, rng: np.random.Generator | None) -> Iterator[torch.Tensor]:
    order = np.random.default_rng(0).permutation(len(paths))
    for i in order:
        with open(paths[i], "rb") as stream:
            yield tensor_of(Image.open(stream).convert("RGB"), size, rng)


def webdataset(path: Path, size: int, raw: bool, rng: np.random.Generator | None) -> Iterator[torch.Tensor]:
    import webdataset as wds

    found = wds.WebDataset(str(path), shardshuffle=False, empty_check=False)
    for sample in found:
        if raw:
            yield tensor_of_pixels(np.load(io.BytesIO(sample["npy"])), size, rng)
        else:
            yield tensor_of(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"), size, rng)


def litdata(folder: Path, size: int, raw: bool, rng: np.random.Generator | None) -> Iterator[torch.Tensor]:
    from litdata import StreamingDataset

    for sample in StreamingDataset(str(folder), shuffle=False):
        if raw:
            yield tensor_of_pixels(sample["image"], size, rng)
        else:
            yield tensor_of(Image.open(io.BytesIO(sample["image"])).convert("RGB"), size, rng)


def make_tar(out: Path, items: list[tuple[str, bytes]]) -> None:
    with tarfile.open(out, "w") as tar:
        for number, (kind, data) in enumerate(items):
            member = tarfile.TarInfo(f"{number:06d}.{kind}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def make_litdata(out: Path, items: list[Any]) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(out), chunk_bytes="64MB")
    for number, item in enumerate(items):
        writer[number] = {"image": item}
    writer.done()
    writer.merge()


def made(folder: Path, paths: list[Path]) -> dict[str, Any]:
    """Write the images in every form; return what could not be made."""
    source = folder / "source" / "one"
    source.mkdir(parents=True)
    for number, path in enumerate(paths):
        (source / f"{number:06d}.jpg").write_bytes(path.read_bytes())
    names = [source / f"{number:06d}.jpg" for number in range(len(paths))]
    missing: dict[str, Any] = {}
    listing, whole = f"folder:{folder / 'source'}", {"validation": 0.0, "test": 0.0}
    build(listing, folder / "ours-jpeg", stored="as-is", options=whole)
    encoded = [name.read_bytes() for name in names]
    make_tar(folder / "jpeg.tar", [("jpg", data) for data in encoded])
    try:
        make_litdata(folder / "lit-jpeg", encoded)
    except ImportError as error:
        missing["litdata"] = str(error)
    for size in SIZES:
        build(listing, folder / f"ours-raw-{size}", size=size, stored="raw", options=whole)
        small = [np.array(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size))) for data in encoded]
        arrays = []
        for pixels in small:
            stream = io.BytesIO()
            np.save(stream, pixels)
            arrays.append(("npy", stream.getvalue()))
        make_tar(folder / f"raw-{size}.tar", arrays)
        if "litdata" not in missing:
            make_litdata(folder / f"lit-raw-{size}", [torch.from_numpy(pixels) for pixels in small])
    return missing


def ways(folder: Path, size: int, augmented: bool, missing: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the loaders of one size, by name; each makes the batches of one pass."""
    names = sorted((folder / "source" / "one").iterdir())

    def rng() -> np.random.Generator | None:
        return np.random.default_rng(0) if augmented else None

    raw, jpeg = (open_shards(folder / name).split("train") for name in (f"ours-raw-{size}", "ours-jpeg"))
    found: dict[str, Callable[[], Any]] = {
        "ours_raw": lambda: ours(raw, size, augmented),
        "ours_jpeg": lambda: ours(jpeg, size, augmented),
        "pillow_files": lambda: stacked(pillow(names, size, rng())),
    }
    try:
        import webdataset as _  # noqa: F401

        found["webdataset_raw"] = lambda: stacked(webdataset(folder / f"raw-{size}.tar", size, True, rng()))
        found["webdataset_jpeg"] = lambda: stacked(webdataset(folder / "jpeg.tar", size, False, rng()))
    except ImportError as error:
        missing["webdataset"] = str(error)
    if "litdata" not in missing:
        found["litdata_raw"] = lambda: stacked(litdata(folder / f"lit-raw-{size}", size, True, rng()))
        found["litdata_jpeg"] = lambda: stacked(litdata(folder / "lit-jpeg", size, False, rng()))
    return found


def rates(loaders: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return images per second of each, in rounds of turns, and how much of ours_raw the others make."""
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    wall: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(-1, NUM_ROUNDS):
        for name in list(loaders)[:: 1 if number % 2 else -1]:
            began, clock, images = time.process_time(), time.perf_counter(), 0
            for batch in loaders[name]():
                images += len(batch)
            if number >= 0:  # the first round warms caches
                cpu[name].append(images / (time.process_time() - began))
                wall[name].append(images / (time.perf_counter() - clock))
    found: dict[str, Any] = {"images_per_cpu_s": {name: round(median(each), 1) for name, each in cpu.items()}}
    found["images_per_wall_s"] = {name: round(median(each), 1) for name, each in wall.items()}
    for own in ("ours_raw", "ours_jpeg"):
        found[f"{own}_is_times"] = {
            name: round(median(a / b for a, b in zip(cpu[own], each, strict=True)), 2)
            for name, each in cpu.items()
            if name != own
        }
    return found


def main() -> None:
    """Make the images in every form, measure, write or print what came of it."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as temporary:
        folder, found = Path(temporary), dict[str, Any]()
        missing = made(folder, files())
        for size in SIZES:
            for kind, augmented in (("plain", False), ("augmented", True)):
                found[f"{kind}_{size}"] = rates(ways(folder, size, augmented, missing))
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    write(out, {"num_images": NUM_IMAGES, "batch": BATCH, "rounds": NUM_ROUNDS, "missing": missing, **found})


if __name__ == "__main__":
    main()
