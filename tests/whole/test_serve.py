"""`subspace serve` as a process: replicas of Ray Serve that answer, refuse, survive a lost replica, and end with it."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests import runs
from tests.launch.retrieval.conftest import files, run, shards  # noqa: F401 - fixtures

MALFORMED = 200


@contextmanager
def serving(*words: str | Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start the service; give its address and its process."""
    process = subprocess.Popen(
        runs.command("serve", *words, "--port", "0"),
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("serving at "), process.stderr.read()
        yield line.split()[-1], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def replicas(process: psutil.Process) -> list[psutil.Process]:
    """The actors, without the processes that they decode in, which carry the same name."""
    found = runs.find(process, "ray::ServeReplica")
    return [one for one in found if one.ppid() not in {other.pid for other in found}]


def ask(address: str, path: str, body: bytes | None = None, kind: str = "image/png") -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(address + path, data=body, headers={"Content-Type": kind} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def malformed(data: bytes, seed: int) -> tuple[bytes, str]:
    """Bytes cut, flipped, inserted or made up, under one media type or another."""
    rng = np.random.default_rng(seed)
    mutated = bytearray(data)
    for _ in range(int(rng.integers(1, 30))):
        mutated[int(rng.integers(len(mutated)))] = int(rng.integers(256))
    choices = [
        bytes(mutated),
        data[: int(rng.integers(len(data)))],
        rng.bytes(200),
        bytes(128) + b"DICM" + rng.bytes(99),
    ]
    kinds = ("image/png", "application/dicom", "application/octet-stream", "text/plain", "multipart/form-data")
    return choices[int(rng.integers(len(choices)))], kinds[int(rng.integers(len(kinds)))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_service_from_start_to_end(run: Path, files: Path) -> None:  # noqa: F811
    good = (files / "009.png").read_bytes()
    with serving(run, "--replicas", "2", "--queued", "4") as (address, process):
        status, answer = ask(address, "/search?k=5&exclude=group&group=patient%205", good)
        assert status == 200, answer
        printed = runs.subspace("search", run, files / "009.png", "-k", "5", "--group", "patient 5",
                                "--exclude", "group", "--json")  # fmt: skip
        direct = json.loads(printed.stdout)[0]
        found = [(one["sample_id"], one["group"]) for one in answer["neighbours"]]  # type: ignore[attr-defined]
        assert found == [(one["sample_id"], one["group"]) for one in direct["neighbours"]]
        assert ask(address, "/health") == (200, {"status": "ok"})

        counts = Counter(ask(address, "/search", *malformed(good, seed))[0] for seed in range(MALFORMED))
        assert set(counts) <= {200, 400, 415, 503}  # a flipped bit may leave an image
        assert counts[400] > MALFORMED / 4
        assert counts[415] > MALFORMED / 10

        with ThreadPoolExecutor(64) as crowd:
            crowded = Counter(status for status, _ in crowd.map(lambda _: ask(address, "/search", good), range(256)))
        assert set(crowded) == {200, 503}
        assert ask(address, "/search", good)[0] == 200

        first, _ = replicas(process)
        first.kill()
        statuses = {ask(address, "/search", good)[0] for _ in range(20)}
        assert statuses <= {200, 503}
        runs.wait_until(lambda: len(replicas(process)) == 2, "another replica")
        assert ask(address, "/search", good)[0] == 200
    runs.assert_nothing_left()
