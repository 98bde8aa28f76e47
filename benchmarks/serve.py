"""What the service costs: searches per second and latencies with 1 and 2 replicas, against a bare FastAPI loop.

    subspace bench serve --out docs/results/performance/serve.json
    python benchmarks/serve.py OUT.json RUN        # of a run that has an index

Without RUN a short run on digits is trained for the occasion (configs/tutorial.yaml). The bare loop is one process of
FastAPI around the same network: it decodes, embeds one image at a time and returns the vector; no index, no batches, no
queue, no Ray. All three serve at once and take turns, and every number is divided by the bare loop's of the same round:
median, least and most over rounds. One machine does everything, the asking included. At the end so many clients ask at
once that the queue is full: statuses.
"""

from __future__ import annotations

from benchmarks.timing import write  # isort: skip  # before torch: it limits the threads

import collections
import http.client
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from PIL import Image

from launch.report.likeness import as_picture
from launch.seen import shards_of
from launch.trained import alone, config_of, load

BARE = "bare"
ROOT = Path(__file__).parents[1]


def bare(run: Path) -> None:
    """Serve vectors by the shortest program that could."""
    import socket

    import numpy as np
    import torch
    import uvicorn

    from data_shards.augment_batch import normalise
    from data_shards.decode import load_image
    from launch import build
    from launch.seen import of_image, preprocessing

    config = config_of(run)
    transform, folder = build.transform(config), shards_of(config)
    steps = preprocessing(folder.manifest, transform)
    with alone(config):
        trained = load(run, config)
    torch.set_num_threads(os.cpu_count() or 1)
    app = FastAPI()

    @app.post("/search")
    async def search(request: Request) -> list[float]:
        seen = of_image(load_image(await request.body(), folder.manifest.channels), "", steps)
        pixels = np.array(seen.pixels.transpose(2, 0, 1)[None])
        with torch.no_grad():
            vectors = trained.network(normalise(torch.from_numpy(pixels), transform)).vectors
        return trained.partition.normalize(vectors)[0].tolist()

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")).run(sockets=[listener])


@contextmanager
def started(*words: str) -> Iterator[str]:
    """Start a service and give its address."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(words)} did not start")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait()


def one(address: str, body: bytes) -> tuple[int, float]:
    """Ask once; return the status and seconds."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("POST", "/search?pictures=false", body, {"Content-Type": "image/png"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, time.perf_counter() - began


def load_of(address: str, bodies: list[bytes], clients: int) -> dict[str, float]:
    """Send all bodies from so many clients; return searches per second and latencies."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as crowd:
        answers = list(crowd.map(lambda body: one(address, body), bodies))
    seconds = time.perf_counter() - began
    if any(status != 200 for status, _ in answers):
        raise SystemExit(f"{address} answers with {collections.Counter(status for status, _ in answers)}")
    latencies = sorted(latency for _, latency in answers)
    return {
        "throughput": len(bodies) / seconds,
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[int(len(latencies) * 0.99)],
    }


def images(run: Path, number: int) -> list[bytes]:
    """Return PNG files of validation images, again from the first when there are too few."""
    reader = shards_of(config_of(run)).split("validation")
    bodies = []
    for row in range(min(number, len(reader))):
        stream = io.BytesIO()
        image: Image.Image = as_picture(reader.image(row))
        image.save(stream, format="PNG")
        bodies.append(stream.getvalue())
    return [bodies[i % len(bodies)] for i in range(number)]


def overload(address: str, bodies: list[bytes], clients: int) -> dict[str, Any]:
    """Ask with far more clients than the queue holds; return how many got which status, and the longest wait."""
    with ThreadPoolExecutor(clients) as crowd:
        answers = list(crowd.map(lambda body: one(address, body), bodies))
    statuses = collections.Counter(str(status) for status, _ in answers)
    return {"clients": clients, "statuses": dict(statuses), "longest_s": round(max(s for _, s in answers), 2)}


def digits_run(folder: Path) -> Path:
    """Train a short run on digits, with an index."""
    run = folder / "run"
    shards = f"data.shards={folder / 'shards'}"
    for words in (
        ("shards", "build", "digits", str(folder / "shards"), "--size", "16"),
        ("train", "configs/tutorial.yaml", shards, "launch.trackers=[]", "--run-dir", str(run)),
        ("index", str(run)),
    ):
        subprocess.run([sys.executable, "-m", "launch", *words], cwd=ROOT, check=True, capture_output=True)
    return run


def measured(run: Path, requests: int = 200, clients: int = 8, rounds: int = 5) -> dict[str, Any]:
    """Return ratios to the bare loop, and what an overload does."""
    bodies = images(run, requests)
    with ExitStack() as ends:
        addresses = {BARE: ends.enter_context(started(__file__, BARE, str(run)))}
        for replicas in (1, 2):
            words = ("-m", "launch", "serve", str(run), "--port", "0", "--replicas", str(replicas))
            addresses[f"{replicas} replicas"] = ends.enter_context(started(*words))
        for address in addresses.values():
            load_of(address, bodies[:clients], clients)  # warm
        found = [{name: load_of(at, bodies, clients) for name, at in addresses.items()} for _ in range(rounds)]
        crowded = {name: overload(at, bodies + bodies, 256) for name, at in addresses.items() if name != BARE}
        after = {name: one(at, bodies[0])[0] for name, at in addresses.items()}
    out: dict[str, Any] = {"clients": clients, "requests": requests, "of the bare loop": {}}
    out[BARE] = {what: round(statistics.median(turn[BARE][what] for turn in found), 4) for what in found[0][BARE]}
    for name in addresses:
        ratios = {w: sorted(turn[name][w] / turn[BARE][w] for turn in found) for w in ("throughput", "p50", "p99")}
        out["of the bare loop"][name] = {
            what: [round(value, 3) for value in (statistics.median(each), each[0], each[-1])]
            for what, each in ratios.items()
        }
    return {**out, "overload": crowded, "status afterwards": after}


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(sys.argv[2]) if len(sys.argv) > 2 else digits_run(Path(folder))
        write(out, measured(run))


if __name__ == "__main__":
    if sys.argv[1:2] == [BARE]:
        bare(Path(sys.argv[2]))
    else:
        main()
