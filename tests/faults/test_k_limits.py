"""A Ray without room, and a Ray whose calls fail: a typed error or the bytes of the undisturbed run, never a hang."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import ROOT, environment

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]
STORE_BYTES = 80 << 20
BOUND_S = 240.0
# argv: journal, rows, features, blocks. Prints one line of JSON with what came of it.
PROGRAM = """
import hashlib, json, sys, time
from pathlib import Path
import numpy as np
from cluster import actors
from cluster.client import connect
from cluster.local import LocalCluster
from cluster.controller import ControllerCore
from data_shards.errors import UserError
from tests.actors import CONFIG, OPTIONS, local_ray
journal, rows, width, num = sys.argv[1], *map(int, sys.argv[2:])
def blocks():
    for part in np.array_split(np.arange(rows), num):
        yield part, np.random.default_rng(part[0]).standard_normal((len(part), width)).astype(np.float32)
def digest(result):
    return hashlib.sha256(b"".join(a.tobytes() for a in (result.centroids, result.labels, result.reserves))).hexdigest()
with local_ray(object_store_bytes=STORE_BYTES) as session:
    began = time.monotonic()
    try:
        started = actors.start("limits", journal, CONFIG, 1, OPTIONS)
        client = connect("limits", 0, 1, 1, 150.0)
        found = {"digest": digest(client.begin(0, 4, 3, blocks())())}
        started.close()
    except UserError as error:
        found = {"error": type(error).__name__, "code": error.exit_code, "sentence": str(error)}
    found["seconds"] = time.monotonic() - began
    logs = [path.read_bytes() for path in Path(session.folder.path).rglob("logs/*") if path.is_file()]
    found["failed_calls"] = sum(text.count(b"Inject RPC") for text in logs)
if "digest" in found:
    expected = LocalCluster(ControllerCore(CONFIG), num_iterations=OPTIONS.num_iterations).begin(0, 4, 3, blocks())()
    found["bitwise"] = found.pop("digest") == digest(expected)
print(json.dumps(found), flush=True)
""".replace("STORE_BYTES", str(STORE_BYTES))


def outcome(tmp_path: Path, rows: int, width: int, num: int, **variables: str) -> dict[str, Any]:
    """Run the program within the bound; return what it printed."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "journal.jsonl"), *map(str, (rows, width, num))]
    given = {**environment(), **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, env=given, cwd=ROOT)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 96 MB; its path is short, since Ray's sockets lie below it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    path = Path(f"/tmp/d{os.getpid()}")
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", path], capture_output=True).returncode:
        path.rmdir()
        pytest.skip("no small disk can be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)
    shutil.rmtree(path)


def test_k6_store_too_small_spills(record: Any, tmp_path: Path) -> None:
    found = outcome(tmp_path, 30_000, 1024, 12)  # 123 MB
    assert found["bitwise"] is True
    record("K6", "object store of 80 MB, embeddings of 123 MB", recovered_s=found["seconds"], bitwise=True)


def test_k6_store_and_disk_too_small(record: Any, tmp_path: Path, small_disk: Path) -> None:
    began = time.monotonic()
    found = outcome(tmp_path, 90_000, 1024, 36, TMPDIR=str(small_disk))  # 368 MB
    assert found.get("error") == "StoreFull", found
    assert not list(small_disk.iterdir())
    record("K6", "object store of 80 MB, 96 MB of disk to spill to, embeddings of 368 MB", rc=found["code"],
           detected_s=time.monotonic() - began, error=found["error"], leaks=0)  # fmt: skip


def chaos(percent: int, num_failures: int) -> str:
    """Return Ray's setting that makes calls between its processes fail before, while and after they are served."""
    kinds = {"req_failure_prob": percent, "in_flight_failure_prob": percent, "resp_failure_prob": percent}
    methods = ("CoreWorkerService.grpc_client.PushTask", "NodeManagerService.grpc_client.RequestWorkerLease",
               "NodeManagerService.grpc_client.ReturnWorkerLease", "NodeManagerService.grpc_client.PinObjectIDs",
               "ray::rpc::ActorInfoGcsService.grpc_client.CreateActor",
               "ray::rpc::ActorInfoGcsService.grpc_client.GetNamedActorInfo",
               "ray::rpc::InternalKVGcsService.grpc_client.InternalKVGet")  # fmt: skip
    return json.dumps({method: {"num_failures": num_failures, **kinds} for method in methods})


def test_k7_failing_calls(record: Any, tmp_path: Path) -> None:
    setting = {"RAY_testing_rpc_failure": chaos(15, 20), "RAY_testing_rpc_failure_avoid_intra_node_failures": "false"}
    found = outcome(tmp_path, 6000, 16, 6, **setting)
    assert found["bitwise"] is True, found
    assert found["failed_calls"] > 10
    record("K7", "15 % of seven kinds of calls fail, at most 20 each per process", recovered_s=found["seconds"],
           failed_calls=found["failed_calls"], bitwise=True)  # fmt: skip
