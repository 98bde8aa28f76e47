"""What one GPU reaches: training against a bare loop, input alone, k-means and scores, with the memory they take.

    subspace bench gpu --out docs/results/performance/gpu.json
    python benchmarks/gpu.py [OUT.json] [--quick] [--only training kmeans scores] [--repeats 5] [--workers N]

On the first CUDA device. Without one, or with `--quick`, sizes are tiny: that says that it works, not how fast, and the
JSON says so. Clocks stop when the device has finished; every way has run before it is timed; ways take turns.

training: the loop of `subspace train` (ResNet-50 cut and frozen as ADSL has it, 224 px, bf16, channels_last, batch
128, crops and flips on the device), against a bare loop of the same network, loss, miner and fused optimiser on one
batch that stays on the device. "ours, batch stays" is our loop on such a batch: what it is faster by is input and
copies that training does not hide, what the bare loop is faster by again is all else that ours does. "input alone"
makes the batches on the device and trains nothing: slower than the bare loop, input is the bound.

kmeans: ours against faiss on the GPU, where faiss sees one, and Lloyd in plain torch: the same start, the same passes,
from rows in the host's memory to labels there. Rows have no structure, so that no way is done early and bounds save
ours next to nothing.

scores: retrieval scores and ten neighbours of all vectors, on the device and, once, on the host.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # one device, whatever there is: faiss would take all
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

from benchmarks import timing  # isort: skip - before numpy and torch: it limits threads

import argparse
import gc
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import epoch
from benchmarks.evaluation import drawn
from benchmarks.random_shards import write_random_shards
from cluster.kmeans import kmeans
from data_shards import order
from data_shards.loader import Batch, train_loader
from launch import engines, networks
from launch.config import RunConfig, checked
from trainer import distributed
from trainer import loop as loop_module
from trainer.losses.margin import margin_loss
from trainer.metrics.neighbours import neighbours
from trainer.metrics.retrieval import retrieval_scores
from trainer.miners import nearest_beyond_cutoff
from trainer.optim import parameter_groups
from trainer.subspaces.partition import SubspacePartition

BASE = epoch.CONFIGS / "adsl" / "isic19.yaml"
STEPS_AGAIN = 5  # how often a single step or copy is timed by events
MB = 1e6
QUOTED = (
    "Published, not measured here, and at another size than any of ours: flash-kmeans (Yang et al. 2026,"
    " https://arxiv.org/abs/2603.09229) reports 5.8 ms for an assignment that took 122.5 ms, on an H200"
)
CHECK_ONLY = "tiny sizes: this says that the benchmark works, not how fast anything is"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    pixels: int
    batch: int
    per_class: int  # images of a class in a batch
    images: int
    classes: int
    steps: int  # of an epoch
    subspaces: tuple[int, ...]
    rows: int  # of k-means
    widths: tuple[int, ...]
    clusters: tuple[int, ...]
    iterations: int
    vectors: int  # that are scored
    repeats: int


FULL = Sizes(224, 128, 8, 5120, 64, 60, (1, 4), 1_000_000, (128, 512), (4, 10, 64, 256), 20, 100_000, 5)
QUICK = Sizes(32, 8, 4, 64, 4, 2, (2,), 2_000, (16,), (4,), 3, 1_000, 1)


def main() -> int:
    """Measure the parts one after another; what was measured stays, whatever becomes of the next."""
    options = _options()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    quick = options.quick or device.type == "cpu"
    sizes = QUICK if quick else FULL
    sizes = replace(sizes, repeats=options.repeats or sizes.repeats)
    workers = options.workers
    if workers is None:
        workers = 0 if device.type == "cpu" else max(1, min(8, (os.cpu_count() or 1) - 1))
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    found: dict[str, Any] = {"device": facts(device), "quick": quick, "sizes": asdict(sizes)}
    if quick:
        found["note"] = CHECK_ONLY if device.type == "cuda" else f"no CUDA device, so on the CPU with {CHECK_ONLY}"
    parts: dict[str, Callable[[], Iterable[Any]]] = {
        "training": lambda: training(sizes, device, workers),
        "kmeans": lambda: clusterings(sizes, device),
        "scores": lambda: [scores(sizes, device)],
    }
    if "kmeans" in (options.only or parts):
        found["kmeans_quoted"] = QUOTED
    failed = False
    for name in options.only or parts:
        found[name] = []
        try:
            for each in parts[name]():
                found[name].append(each)
                timing.write(options.out, found)
        except Exception as error:
            traceback.print_exc()
            failed = True
            found[name].append({"failed": f"{type(error).__name__}: {error}"})
        distributed.shut_down()
        release(device)
    timing.write(options.out, found)
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; so by itself without a CUDA device")
    parser.add_argument("--only", nargs="+", choices=("training", "kmeans", "scores"), help="some of the parts")
    parser.add_argument("--repeats", type=int, help="timed rounds")
    parser.add_argument("--workers", type=int, help="processes that load images")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="have cuDNN try its algorithms, in all loops")
    return parser.parse_args()


# -- the device


def facts(device: torch.device) -> dict[str, Any]:
    """Return what figures of a device depend on."""
    if device.type == "cpu":
        return {"name": "cpu", "cuda": None}
    about = torch.cuda.get_device_properties(device)
    return {
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "capability": f"{about.major}.{about.minor}",
        "memory_mb": round(about.total_memory / MB),
    }


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give the device's memory back that nobody uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def finished(way: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """Return the way, which ends when the device has done its work."""

    def run() -> None:
        way()
        synchronise(device)

    return run


def timed(ways: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Return wall seconds of every round of each way; each ran once before, and what came before has ended."""
    waiting = {name: finished(way, device) for name, way in ways.items()}
    for way in waiting.values():
        way()
    return timing.interleaved(waiting, repeats)


def device_ms(way: Callable[[], Any], device: torch.device) -> float:
    """Return the median milliseconds that lie between two events around the way on the device's queue."""
    way()
    took = []
    for _ in range(STEPS_AGAIN):
        synchronise(device)
        if device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            way()
            ended.record()
            ended.synchronize()
            took.append(began.elapsed_time(ended))
        else:
            clock = time.perf_counter()
            way()
            took.append(1e3 * (time.perf_counter() - clock))
    return round(median(took), 3)


def allocated_mb(way: Callable[[], Any], device: torch.device) -> float | None:
    """Return the most memory that torch's tensors had at once in the way, beside what was there; None on a CPU."""
    release(device)
    if device.type != "cuda":
        way()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    way()
    synchronise(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / MB, 1)


def peak_mb(way: Callable[[], Any], device: torch.device) -> dict[str, float | None]:
    """Return {"allocated": as `allocated_mb`, "device": what the driver gave away}, the latter looked at every 2 ms.

    The device's is with torch's cache, and with what faiss takes, which torch does not see. The thread that looks is
    not for ways that fork.
    """
    if device.type != "cuda":
        return {"allocated": allocated_mb(way, device), "device": None}
    release(device)
    free = torch.cuda.mem_get_info(device)[0]
    least, done = [free], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            least[0] = min(least[0], torch.cuda.mem_get_info(device)[0])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        allocated = allocated_mb(way, device)
        least[0] = min(least[0], torch.cuda.mem_get_info(device)[0])
    finally:
        done.set()
        watcher.join()
    return {"allocated": allocated, "device": round((free - least[0]) / MB, 1)}


# -- training


def config_for(shards: Path, sizes: Sizes, num_subspaces: int, workers: int) -> RunConfig:
    """Return ADSL's configuration at these sizes, in one process.

    The rate is next to nothing, so that random weights under frozen norms stay finite; speed does not depend on it.
    """
    tree = epoch.config_for(BASE, shards, num_subspaces, sizes.steps).model_dump(mode="json")
    tree["compat"] = None
    tree["data"] |= {"image_size": sizes.pixels, "resize": None, "num_workers": workers}
    tree["train"] |= {"batch_size": sizes.batch, "samples_per_class": sizes.per_class}
    tree["train"] |= {"precision": "bf16", "channels_last": True}
    tree["optim"]["lr"] = 1e-9
    return checked(tree, str(BASE))


class Bare:
    """The least that trains the same network: one batch that stays on the device, one subspace after the other."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.device, self.steps = device, config.train.steps_per_epoch or 0
        self.model = networks.model(config, device).train()
        groups = parameter_groups(self.model, config.optim.lr, config.optim.embedding_lr)
        self.optimiser = engines.optimiser(config, fused=True)(groups)
        self.partition = SubspacePartition.equal(config.model.num_dims, config.model.num_subspaces)
        size, side = config.train.batch_size, config.data.image_size
        drawn_once = torch.randn(size, config.data.channels, side, side, generator=torch.Generator().manual_seed(0))
        self.images = drawn_once.to(device).contiguous(memory_format=torch.channels_last)
        self.labels = (torch.arange(size) // config.train.samples_per_class).to(device)

    def step(self, k: int = 0) -> None:
        """Train one step of a subspace."""
        with torch.autocast(self.device.type, torch.bfloat16):
            vectors = self.model(self.images).vectors
        block = self.partition.block(vectors.float(), k)
        loss = margin_loss(block, self.labels, nearest_beyond_cutoff(block.detach(), self.labels))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def train(self) -> None:
        """Train as many steps as our loop does in an epoch."""
        for number in range(self.steps):
            self.step(number % len(self.partition.widths))


def batches_of(ours: epoch.Ours) -> Iterator[Batch]:
    """Yield the batches of an epoch on the device, as our loop gets them."""
    loop, state = ours.loop, ours.loop.state
    labels, num_subspaces = None, 1
    if state.assignment is not None:
        labels, num_subspaces = state.assignment.labels, state.assignment.num_subspaces
    seed = loop.options.seed
    batches = order.batches(seed, state.epoch, labels, loop.train_split.labels, num_subspaces, loop.rule)
    return train_loader(
        loop.train_split,
        batches,
        loop.transform,
        seed,
        state.epoch,
        views=loop.objective.views,
        num_workers=loop.num_workers,
        device=loop.engine.device,
    )


@contextmanager
def staying(batch: Batch) -> Iterator[None]:
    """Have our loop get one batch at every step, which is on the device already, instead of reading."""

    def loader(_: Any, batches: Any, *others: Any, **named: Any) -> Iterator[Batch]:
        return (replace(batch, subspace=subspace) for subspace, _ in batches)

    with mock.patch.object(loop_module, "train_loader", loader):
        yield


def input_alone(ours: epoch.Ours) -> None:
    """Make the batches of an epoch, and nothing of them."""
    for _ in batches_of(ours):
        pass


def train_staying(ours: epoch.Ours, batch: Batch) -> None:
    """Train an epoch of our loop without input."""
    with staying(batch):
        ours.train()


def training(sizes: Sizes, device: torch.device, workers: int) -> Iterator[dict[str, Any]]:
    """Yield for each number of subspaces how fast our loop, its input and the bare loop are."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_random_shards(folder / "shards", (sizes.images, sizes.batch), sizes.classes, sizes.pixels, 3)
        for num_subspaces in sizes.subspaces:
            yield epochs(config_for(folder / "shards", sizes, num_subspaces, workers), folder, device, sizes.repeats)


def epochs(config: RunConfig, folder: Path, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return how long an epoch takes in each of the loops, what follows from it, and the memory of both.

    Our memory is that of the first epoch, with the clustering in front of it where there are several subspaces.
    """
    held: dict[str, Any] = {}
    run = folder / f"run-{config.model.num_subspaces}"

    def begin_ours() -> None:
        held["ours"] = epoch.Ours(config, run, ends)
        held["ours"].train()

    def begin_bare() -> None:
        held["bare"] = Bare(config, device)
        held["bare"].train()

    with ExitStack() as ends:
        peaks = {"ours": allocated_mb(begin_ours, device), "bare": allocated_mb(begin_bare, device)}
        ours, bare = held["ours"], held["bare"]
        batch = next(batches_of(ours))
        ways: dict[str, Callable[[], Any]] = {
            "ours": ours.train,
            "ours, batch stays": lambda: train_staying(ours, batch),
            "bare": bare.train,
            "input alone": lambda: input_alone(ours),
        }
        wall = timed(ways, repeats, device)
        step = device_ms(bare.step, device)
    num_images = (config.train.steps_per_epoch or 0) * config.train.batch_size
    return {
        "setting": f"ResNet-50 to stage 3, frozen norms, {config.data.image_size} px, bf16, channels_last",
        "batch": config.train.batch_size,
        "num_subspaces": config.model.num_subspaces,
        "steps": config.train.steps_per_epoch,
        "workers": config.data.num_workers,
        **timing.compared(wall, "ours"),
        "images_per_s": {name: round(num_images / median(each), 1) for name, each in wall.items()},
        **shares(wall),
        "peak_mb": peaks,
        "bare_step_device_ms": step,
        "copy": copying(config, device),
    }


def shares(wall: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return of our epoch, [median, least, most] of the rounds: the fraction of the bare loop's speed that it reaches,
    the share of its time that the bare loop does not take, and how much of that is input; and what is the bound."""
    ours, stays, bare = (np.array(wall[name]) for name in ("ours", "ours, batch stays", "bare"))
    return {
        "fraction_reached": _spread(bare / ours),
        "share_not_hidden": _spread((ours - bare) / ours),
        "share_of_input": _spread((ours - stays) / ours),
        "share_of_all_else": _spread((stays - bare) / ours),
        "bound": "input" if median(wall["input alone"]) > median(wall["bare"]) else "compute",
    }


def _spread(values: np.ndarray) -> list[float]:
    return [round(float(each), 3) for each in (np.median(values), values.min(), values.max())]


def copying(config: RunConfig, device: torch.device) -> dict[str, float] | None:
    """Return what a batch of bytes costs on its way: into pinned memory, then to the device; None on a CPU."""
    if device.type != "cuda":
        return None
    shape = (config.train.batch_size, config.data.channels, config.data.image_size, config.data.image_size)
    pixels = torch.zeros(shape, dtype=torch.uint8)
    pinned = pixels.pin_memory()
    took = device_ms(lambda: pinned.to(device, non_blocking=True), device)
    host = timed({"pin": pixels.pin_memory}, STEPS_AGAIN, device)["pin"]
    return {
        "pin_ms": round(1e3 * median(host), 3),
        "copy_ms": took,
        "copy_gb_per_s": round(pixels.numel() / 1e6 / max(took, 1e-3), 2),
    }


# -- k-means


def unit_rows(num_rows: int, width: int, device: torch.device) -> np.ndarray:
    """Return (N, D) float32 unit rows without structure, in the host's memory; drawn on the device, which is fast."""
    x = torch.randn(num_rows, width, generator=torch.Generator(device).manual_seed(0), device=device)
    return (x / x.norm(dim=1, keepdim=True)).cpu().numpy()


def faiss_with_gpu() -> Any:
    """Return faiss if it sees a GPU; else None: faiss.Kmeans(gpu=True) would run on the CPU and not say so."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() else None


def torch_lloyd(x: np.ndarray, start: np.ndarray, iterations: int, device: torch.device) -> np.ndarray:
    """Return the labels (N,) of Lloyd in plain torch, float32: chunks, sums as a product with the memberships."""
    rows, centroids = torch.from_numpy(x).to(device), torch.from_numpy(start).to(device)
    num = len(start)
    labels = torch.empty(len(rows), dtype=torch.int64, device=device)
    for turn in range(iterations + 1):
        half = 0.5 * (centroids * centroids).sum(dim=1)
        sums, counts = torch.zeros_like(centroids), torch.zeros(num, device=device)
        for first in range(0, len(rows), 1 << 16):
            part = rows[first : first + (1 << 16)]
            found = torch.addmm(half, part, centroids.T, alpha=-1).argmin(dim=1)
            labels[first : first + len(part)] = found
            if turn < iterations:
                members = torch.zeros(len(part), num, device=device).scatter_(1, found[:, None], 1.0)
                sums.addmm_(members.T, part)
                counts += members.sum(dim=0)
        if turn < iterations:
            centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
    return labels.cpu().numpy()


def clusterings(sizes: Sizes, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield for each width and number of clusters how long each way takes."""
    for width in sizes.widths:
        x = unit_rows(sizes.rows, width, device)
        release(device)
        for num_clusters in sizes.clusters:
            yield clustering(x, num_clusters, sizes, device)


def clustering(x: np.ndarray, num_clusters: int, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Compare one point: seconds, memory, and how many labels are ours."""
    start, last = x[:num_clusters].copy(), dict[str, Any]()
    backend: Any = "torch" if device.type == "cuda" else "auto"
    faiss = faiss_with_gpu()

    def ours() -> None:
        last["ours"] = kmeans(x, num_clusters, 0, num_iterations=sizes.iterations, backend=backend, initial=start)

    def with_torch() -> None:
        last["torch"] = torch_lloyd(x, start, sizes.iterations, device)

    def with_faiss() -> None:
        faiss.omp_set_num_threads(os.cpu_count() or 1)  # it makes the centroids on the host
        found = faiss.Kmeans(x.shape[1], num_clusters, niter=sizes.iterations, gpu=True, max_points_per_centroid=len(x))
        found.train(x, init_centroids=start)
        last["faiss-gpu"] = found.index.search(x, 1)[1][:, 0]

    ways: dict[str, Callable[[], Any]] = {"ours": ours, "torch": with_torch}
    if faiss is not None and device.type == "cuda":
        ways["faiss-gpu"] = with_faiss
    peaks = {name: peak_mb(way, device) for name, way in ways.items()}
    ways["upload of the rows alone"] = lambda: torch.from_numpy(x).to(device)
    found = timing.compared(timed(ways, sizes.repeats, device), "ours")
    mine = last.pop("ours")
    return {
        "rows": len(x),
        "width": x.shape[1],
        "clusters": num_clusters,
        "backend": backend,
        "iterations": sizes.iterations,
        "iterations_ours": mine.iterations,
        **found,
        "ours_ms_per_pass": round(1e3 * found["median_s"]["ours"] / (mine.iterations + 1), 3),
        "peak_mb": peaks,
        "labels_equal": {name: round(float(np.mean(mine.labels == labels)), 6) for name, labels in last.items()},
        "faiss": None if "faiss-gpu" in ways else "left out: faiss sees no GPU here, or is not installed",
    }


# -- scores


def scores(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Return seconds and memory of scores and neighbours on the device, and whether the host finds the same."""
    vectors, labels = drawn(sizes.vectors)
    there = torch.from_numpy(vectors).to(device)
    last: dict[str, Any] = {}

    def score() -> None:
        last["scores"] = retrieval_scores(there, labels)

    def ask() -> None:
        last["neighbours"] = neighbours(there, 10)

    ways = {"scores": score, "neighbours": ask}
    peaks = {name: peak_mb(way, device) for name, way in ways.items()}
    wall = timed(ways, sizes.repeats, device)
    return {
        "vectors": len(vectors),
        "width": vectors.shape[1],
        "median_s": {name: round(median(each), 4) for name, each in wall.items()},
        "peak_mb": peaks,
        "values": last["scores"],
        "host": None if device.type == "cpu" else on_host(vectors, labels, last),
    }


def on_host(vectors: np.ndarray, labels: np.ndarray, there: dict[str, Any]) -> dict[str, Any]:
    """Return seconds of the same work on all cores of the host, once, and whether what it finds is the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        clocks = [time.perf_counter()]
        found = retrieval_scores(vectors, labels)
        clocks.append(time.perf_counter())
        rows, _ = neighbours(vectors, 10)
        clocks.append(time.perf_counter())
    finally:
        torch.set_num_threads(threads)
    return {
        "threads": os.cpu_count(),
        "seconds": {"scores": round(clocks[1] - clocks[0], 3), "neighbours": round(clocks[2] - clocks[1], 3)},
        "scores_equal": found == there["scores"],
        "neighbours_equal": bool((rows == there["neighbours"][0]).all()),
    }


if __name__ == "__main__":
    raise SystemExit(main())
