"""From embeddings in two ranks to their clusters in both: the ways rows, or sums, can travel.

    python benchmarks/handover.py [OUT.json] [--rows 250000] [--width 512] [--clusters 10] [--repeats 5]

Two processes of one thread with half of the rows each, one Ray, 20 iterations from the same keyed seeding. `in ranks`:
the same shards, sums exchanged by torch.distributed (gloo), nothing else: what the others are measured against.
`actors`, `ranks`: our two placements. `one faiss actor`: rows gathered on rank 0, put, clustered there by faiss from a
start that is given. Nobody looks for reserves, which only a training needs. Times are those of the slower rank, without
making the embeddings; Ray and actors run before.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import compared, write  # isort: skip  # before numpy: it limits the threads

import numpy as np

from benchmarks.kmeans import unit_rows
from cluster import actors, client, ray_session
from cluster.controller import ControllerConfig
from cluster.growth import PlateauGrowth
from cluster.kmeans import KMeans, KMeansShard
from cluster.peers import Peers
from cluster.plan import PlanConfig
from cluster.remote_shards import ActorOptions

WORLD_SIZE, SEED, ITERATIONS, BLOCK = 2, 3, 20, 8192


class _Faiss:
    """Clusters what one rank has put."""

    def cluster(self, refs: list[Any], num_clusters: int, start: np.ndarray) -> np.ndarray:
        import faiss
        import ray

        rows = ray.get(refs[0])
        faiss.omp_set_num_threads(1)
        found = faiss.Kmeans(rows.shape[1], num_clusters, niter=ITERATIONS, max_points_per_centroid=10**9)
        found.train(rows, init_centroids=start)
        return found.index.search(rows, 1)[1][:, 0].astype(np.int32)


def rank_main(options: argparse.Namespace) -> None:
    """Take turns at all ways; rank 0 prints the seconds of the slower rank."""
    import ray
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank = options.rank
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{options.port}", rank=rank, world_size=WORLD_SIZE)
    ray_session.ensure_ray(options.address, node_ip="127.0.0.1")
    rows = unit_rows(options.rows, options.width, 20)
    mine = np.arange(rank, options.rows, WORLD_SIZE)
    own = np.ascontiguousarray(rows[mine])
    start = rows[: options.clusters].copy()
    del rows
    blocks = [(mine[i : i + BLOCK], own[i : i + BLOCK]) for i in range(0, len(mine), BLOCK)]
    choices = ActorOptions(num_shards=0, num_iterations=ITERATIONS)
    by_actors = client.connect("actors", rank, WORLD_SIZE, 1, num_reserves=0)
    by_ranks = client.connect("ranks", rank, WORLD_SIZE, 1, num_reserves=0, beside=choices)
    collector = ray.get_actor("faiss", "bench") if rank == 0 else None

    def gathered(step: int, answer: Any, last: Any) -> tuple[bool, Any]:
        from cluster.exchange import added_up

        answers: list[Any] = [None] * WORLD_SIZE
        dist.all_gather_object(answers, answer)
        return True, added_up(answers)

    def in_ranks(version: int) -> np.ndarray:
        shard = KMeansShard()
        for ids, features in blocks:
            shard.put(version, ids, features)
        return (
            KMeans(Peers(shard, gathered, lambda step, last: None), ITERATIONS)
            .fit(version, options.clusters, SEED)
            .labels
        )

    def one_faiss_actor(version: int) -> np.ndarray:
        parts = [torch.empty(len(range(r, options.rows, WORLD_SIZE)), options.width) for r in range(WORLD_SIZE)]
        dist.gather(torch.from_numpy(own), parts if rank == 0 else None)
        labels = torch.empty(options.rows, dtype=torch.int32)
        if rank == 0:
            assert collector is not None
            together = ray.put(torch.cat(parts).numpy())
            found = ray.get(collector.cluster.remote([together], options.clusters, start))
            labels = torch.from_numpy(found.copy())
        dist.broadcast(labels, 0)
        return labels.numpy()

    ways: dict[str, Callable[[int], np.ndarray]] = {
        "in ranks": in_ranks,
        "actors": lambda version: by_actors.begin(version, options.clusters, SEED, blocks)().labels,
        "ranks": lambda version: by_ranks.begin(version, options.clusters, SEED, blocks)().labels,
        "one faiss actor": one_faiss_actor,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels = {}
    for turn in range(options.repeats + 1):  # the first warms up
        for name, way in ways.items():
            dist.barrier()
            began = time.perf_counter()
            labels[name] = way(turn)
            dist.barrier()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    same = {name: bool(np.array_equal(labels[name], labels["in ranks"])) for name in ("actors", "ranks")}
    if rank == 0:
        Path(options.found).write_text(json.dumps({"seconds": seconds, "same": same}))
    dist.destroy_process_group()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Start Ray, the actors and two ranks, and return what rank 0 found."""
    import ray

    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    size = 4 * options.rows * options.width
    session = ray_session.ensure_ray(
        num_cpus=4, num_gpus=0, object_store_bytes=max(4 * size, 100 << 20), node_ip="127.0.0.1"
    )
    try:
        with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
            config = ControllerConfig(PlanConfig(1), (options.width,), PlateauGrowth(), seed=0)
            held: list[Any] = []  # actors end when nobody holds them
            for name, num_shards in (("actors", WORLD_SIZE), ("ranks", 0)):
                given = ActorOptions(num_shards=num_shards, num_cpus=0.1, num_iterations=ITERATIONS, log_folder=folder)
                held += [actors.start(name, f"{folder}/{name}.jsonl", config, WORLD_SIZE, given)]
            held += [ray.remote(_Faiss).options(name="faiss", namespace="bench", num_cpus=0).remote()]
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            found = Path(folder) / "found.json"
            words = [sys.executable, "-m", "benchmarks.handover", "--address", session.address, "--port", str(port)]
            words += ["--rows", str(options.rows), "--width", str(options.width), "--found", str(found)]
            words += ["--clusters", str(options.clusters), "--repeats", str(options.repeats)]
            ranks = [subprocess.Popen([*words, "--rank", str(rank)]) for rank in range(WORLD_SIZE)]
            if max(rank.wait() for rank in ranks):
                raise SystemExit("a rank failed")
            return dict(json.loads(found.read_text()))
    finally:
        session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    for hidden in ("--address", "--found"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--rank", "--port"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank_main(options)
        return
    found = measured(options)
    asked = {name: getattr(options, name) for name in ("rows", "width", "clusters")}
    write(options.out, {**asked, "same labels": found["same"], **compared(found["seconds"], "in ranks")})


if __name__ == "__main__":
    main()
