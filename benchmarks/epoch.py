"""An epoch of our training loop against a plain PyTorch loop on the same network, images, loss and miner; one thread.

    subspace bench epoch --out docs/results/performance/epoch.json

The plain loop is what an expert writes for one process: images as one uint8 tensor in memory, augmentation of whole
batches, channels_last, bf16 autocast, fused Adam, no look at the loss. Ours is the loop of `subspace train` with all
that it does besides: keyed order and draws, checksums of what is read, agreement on what is finite, saliency,
metrics.jsonl. Images are random, in shards written for the occasion.

With K above 1 also what a clustering takes, as a share of the epoch: of all images, of those that training has not seen
since the last one, and of those that it has not seen for 8 epochs. CPU seconds stand beside wall seconds: they change
less with what else runs on the machine. A second argument is the share of the images, for a quick look.

Legend: S images, B batch, K subspaces, D embedding width, C channels, P pixels of a side.
"""

from __future__ import annotations

from benchmarks import timing  # isort: skip - first: it limits threads

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.random_shards import write_random_shards
from cluster.plan import EpochPlan
from data_shards.reader import open_shards
from launch import networks, services
from launch.assembly import assemble
from launch.attempt import Attempt
from launch.config import RunConfig, checked
from launch.rank import prepare_process
from launch.yaml_file import read
from trainer import distributed
from trainer.loop import Loop
from trainer.losses.margin import margin_loss
from trainer.miners import nearest_beyond_cutoff
from trainer.subspaces.partition import SubspacePartition

CONFIGS = Path(__file__).parents[1] / "configs"
MAX_AGE, WARM_UP = 8, 4
# name: configuration, train and validation images, classes
SETTINGS = {
    "small network, 28 px, batch 128": (CONFIGS / "compare" / "omniglot.yaml", (15_000, 2_000), 750),
    "ResNet-18 to stage 3, 64 px, batch 32": (CONFIGS / "adsl" / "ham10000_cpu.yaml", (2_872, 719), 7),
}


def config_for(path: Path, shards: Path, num_subspaces: int, steps: int, **cluster: Any) -> RunConfig:
    """Return a configuration of one process with K subspaces from the start and the published miner."""
    tree = read(path)
    tree["data"]["shards"] = str(shards)
    tree["model"]["num_subspaces"] = num_subspaces
    tree["objective"] = {"miner": {"name": "nearest_beyond_cutoff"}}
    tree["train"] = {**tree["train"], "epochs": 100_000, "finetune_epoch": None, "steps_per_epoch": steps}
    tree["optim"] = {"lr": 1.0e-3}
    tree["cluster"] = {"backend": "local", "recluster_every": 1, **cluster}
    tree["growth"] = {"enabled": False}
    tree["launch"] = {"nproc": 1, "threads": 1, "trackers": []}
    return checked(tree, str(path))


class Ours:
    """Our loop in a run folder of its own, and the parts of its epochs one by one."""

    def __init__(self, config: RunConfig, run: Path, ends: ExitStack) -> None:
        (run / "logs").mkdir(parents=True)
        prepare_process(config)
        distributed.initialise(60)
        client = services.connect(config, run, 1, ends)
        attempt = Attempt(1, "benchmark", None)
        loop, recorder, _ = assemble(config, run, attempt, client, None, lambda: False)
        ends.callback(recorder.close)
        self.loop: Loop = loop
        self.start()

    def start(self) -> None:
        """Plan and cluster, where K is above 1."""
        self.loop.start_epoch()

    def train(self) -> None:
        """Train the steps of an epoch, and be at its start again, one epoch further."""
        state = self.loop.state
        self.loop.train_epoch()
        state.epoch, state.step_in_epoch = state.epoch + 1, 0

    def cluster(self) -> None:
        """Embed the training split, cluster it and make an assignment."""
        state = self.loop.state
        if state.assignment is not None:
            widths = state.partition.widths
            self.loop.reclustering.run(EpochPlan(state.epoch, 0, len(widths), widths, "subspace", recluster=True))

    def validate(self) -> None:
        """Embed the validation split and score it."""
        self.loop.validator(self.loop.engine.model, self.loop.state.partition)


class Plain:
    """The plain loop; `num_subspaces` blocks, each trained on the rows that `assignment` (S,) gives it."""

    def __init__(self, config: RunConfig, images: Tensor, labels: np.ndarray, assignment: np.ndarray) -> None:
        self.config, self.images, self.labels = config, images, torch.from_numpy(labels.astype(np.int64))
        self.model = networks.model(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.train()
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-3, weight_decay=1e-4, fused=True)
        self.partition = SubspacePartition.equal(config.model.num_dims, config.model.num_subspaces)
        self.by_class = [
            [
                rows
                for rows in (np.flatnonzero((assignment == k) & (labels == c)) for c in np.unique(labels))
                if len(rows) > 1
            ]
            for k in range(config.model.num_subspaces)
        ]
        self.mean, self.std = (torch.tensor(v)[None, :, None, None] for v in (config.data.mean, config.data.std))
        self.random = np.random.default_rng(0)

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield subspaces in turn, each with rows of a few of its classes."""
        size, per_class = self.config.train.batch_size, self.config.train.samples_per_class
        for step in range(self.config.train.steps_per_epoch or 0):
            groups = self.by_class[k := step % len(self.by_class)]
            picks = self.random.choice(len(groups), size // per_class, replace=len(groups) < size // per_class)
            yield k, np.concatenate([self.random.choice(groups[i], per_class) for i in picks])

    def augmented(self, images: Tensor) -> Tensor:
        """Return the images as floats, warped at random as the configuration says, and normalised."""
        theta = torch.from_numpy(affine(self.config, self.random, len(images)))
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        padding = self.config.data.augment.padding
        warped = functional.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)
        return warped.div_(255).sub_(self.mean).div_(self.std)

    def train(self) -> None:
        """Train the steps of an epoch."""
        for k, rows in self.batches():
            index = torch.from_numpy(rows)
            images = self.augmented(self.images[index]).contiguous(memory_format=torch.channels_last)
            labels = self.labels[index]
            with torch.autocast("cpu", torch.bfloat16):
                vectors = self.model(images).vectors
            block = self.partition.block(vectors.float(), k)
            loss = margin_loss(block, labels, nearest_beyond_cutoff(block.detach(), labels))
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()


def affine(config: RunConfig, random: np.random.Generator, number: int) -> np.ndarray:
    """Return (n, 2, 3) maps from output to source: a crop where the configuration crops, else small motions."""
    augment = config.data.augment
    signed = random.uniform(-1, 1, (number, 4))
    if augment.crop_scale != (1.0, 1.0):
        side = np.sqrt(random.uniform(*augment.crop_scale, number))
        flips = random.choice([-1.0, 1.0], (number, 2))
        theta = np.zeros((number, 2, 3))
        theta[:, 0, 0], theta[:, 1, 1] = side * flips[:, 0], side * flips[:, 1]
        theta[:, :, 2] = signed[:, :2] * (1 - side[:, None])
        return theta.astype(np.float32)
    angle, zoom = np.deg2rad(augment.rotate_degrees) * signed[:, 0], random.uniform(*augment.scale, number)
    shear = np.tan(np.deg2rad(augment.shear) * signed[:, 1])
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    shift = 2 * augment.translate * signed[:, 2:]
    rows = np.stack([cos, cos * shear - sin, shift[:, 0], sin, sin * shear + cos, shift[:, 1]], axis=1)
    return rows.reshape(number, 2, 3).astype(np.float32)


def on_both_clocks(way: Callable[[], Any], cpu: list[float]) -> Callable[[], None]:
    """Return the way, which adds its CPU seconds to a list whenever it is called."""

    def called() -> None:
        began = time.process_time()
        way()
        cpu.append(time.process_time() - began)

    return called


def measure(name: str, num_subspaces: int, folder: Path, share: float, repeats: int) -> dict[str, Any]:
    """Return wall and CPU seconds of an epoch in both loops, and of what else ours does in an epoch."""
    path, counts, num_classes = SETTINGS[name]
    shards, tree = folder / "shards", read(path)
    counts = (round(share * counts[0]), round(share * counts[1]))
    num_classes = max(7, round(share * num_classes))
    if not shards.exists():
        write_random_shards(shards, counts, num_classes, tree["data"]["image_size"], tree["data"].get("channels", 3))
    steps = counts[0] // tree["train"]["batch_size"]
    config = config_for(path, shards, num_subspaces, steps)
    with ExitStack() as ends:
        ours = Ours(config, folder / f"run-{num_subspaces}", ends)
        split = open_shards(shards).split("train")
        images = torch.from_numpy(split.images(np.arange(len(split)))).permute(0, 3, 1, 2).contiguous()
        assignment = ours.loop.state.assignment
        zeros = np.zeros(len(split), np.int32)
        plain = Plain(config, images, split.labels, zeros if assignment is None else np.asarray(assignment.labels))
        ways = {"ours": ours.train, "plain": plain.train, "validate": ours.validate}
        if num_subspaces > 1:
            recycling = config_for(path, shards, num_subspaces, steps, features="recycled")
            other = Ours(recycling, folder / f"recycled-{num_subspaces}", ends)
            ways |= {"cluster": ours.cluster, "ours, recycled": other.train, "cluster, recycled": other.cluster}
            recycling = config_for(path, shards, num_subspaces, steps, features="recycled", max_age=MAX_AGE)
            old = Ours(recycling, folder / f"old-{num_subspaces}", ends)
            for _ in range(WARM_UP):  # until hardly a row is too old
                old.train()
            ways |= {f"ours, max_age {MAX_AGE}": old.train, f"cluster, max_age {MAX_AGE}": old.cluster}
        for way in ways.values():
            way()  # warm
        cpu: dict[str, list[float]] = {each: [] for each in ways}
        wall = timing.interleaved({each: on_both_clocks(way, cpu[each]) for each, way in ways.items()}, repeats)
        distributed.shut_down()
    rate = steps * config.train.batch_size / np.median(wall["ours"])
    return {
        "setting": name,
        "num_subspaces": num_subspaces,
        "steps": steps,
        "wall": timing.compared(wall, "plain"),
        "cpu": timing.compared(cpu, "plain"),
        "images_per_s": round(float(rate), 1),
    }


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    share = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    found = []
    for name in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            found += [measure(name, k, Path(folder), share, repeats=5) for k in (1, 4)]
    timing.write(out, {"share_of_images": share, "epochs": found})


if __name__ == "__main__":
    main()
