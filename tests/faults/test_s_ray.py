"""A Ray with dashboard and token, as `subspace submit ray` uses it, attacked from this machine; and what we refuse."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.dashboard

from cluster.janitor import users
from tests.ray_cluster import RayCluster
from tests.runs import ROOT, environment, subspace, wait_until

pytestmark = pytest.mark.timeout(400)
CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
# The page, its icon, how to log in, and whether it is alive: text that is the same for every cluster.
PUBLIC = {"/", "/favicon.ico", "/api/authentication_mode", "/api/authenticate", "/api/healthz", "/api/gcs_healthz",
          "/api/local_raylet_healthz", "/-/healthz"}  # fmt: skip
ENOUGH_ROUTES = 60  # of Ray 2.60: the search for routes has found them


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster(num_nodes=0, cpus_per_node=1)
    try:
        yield cluster
    finally:
        cluster.close()


def routes() -> set[str]:
    """Return the paths of all routes in the source of Ray's dashboard and agents, placeholders filled."""
    folder = Path(ray.dashboard.__file__).parent
    text = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    found = re.findall(r"outes\.(?:get|post|put|delete|patch)\(\s*f?[\"'](/[^\"']*)[\"']", text)
    return {re.sub(r"\{[^}]*\}", "x", path) for path in found}


def answer(address: str, method: str, path: str, token: str | None = None, body: bytes | None = None) -> int:
    header = {"Content-Type": "application/json"} if token is None else {"Authorization": f"Bearer {token}"}
    asked = urllib.request.Request(f"{address}{path}", method=method, headers=header, data=body)
    try:
        with urllib.request.urlopen(asked, timeout=30) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code


def http_addresses(cluster: RayCluster) -> tuple[list[str], list[str]]:
    """Return where the cluster's processes speak HTTP: with routes, and exporters of metrics, which know one text."""
    with_routes, exporters = [], []
    for process in map(psutil.Process, users(str(cluster.folder))):
        listening = {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        for address in [f"http://{at.ip}:{at.port}" for at in listening if at.ip != "::"]:
            try:
                with urllib.request.urlopen(f"{address}/api/local_raylet_healthz", timeout=10) as found:
                    (exporters if found.read().startswith(b"# HELP") else with_routes).append(address)
            except urllib.error.HTTPError:
                with_routes.append(address)
            except (OSError, ValueError, http.client.HTTPException):
                continue
    return with_routes, exporters


def test_s1_every_route_wants_the_token(record: Any, cluster: RayCluster, tmp_path: Path) -> None:
    # Another cluster of this machine may hold the agent's port; then the agent serves nothing.
    wait_until(lambda: cluster.address in http_addresses(cluster)[0], "the dashboard", 120)
    for _ in range(10):
        if len(http_addresses(cluster)[0]) > 1:
            break
        time.sleep(1)
    mark = tmp_path / "executed"
    job = json.dumps({"entrypoint": f"touch {mark}"}).encode()
    paths = sorted(routes() - PUBLIC)
    assert len(paths) > ENOUGH_ROUTES and "/api/jobs/" in paths
    answers: dict[int, int] = {}
    addresses, exporters = http_addresses(cluster)
    for address in addresses:
        for path in paths:
            for method in METHODS:
                code = answer(address, method, path, body=job if method in ("POST", "PUT") else None)
                answers[code] = answers.get(code, 0) + 1
                assert code in (401, 403), f"{method} {address}{path} was answered with {code}"
    for path in PUBLIC:
        for method in ("POST", "PUT", "DELETE"):
            assert answer(cluster.address, method, path, body=job) != 200, (method, path)
    time.sleep(3)
    assert not mark.exists()
    assert answer(cluster.address, "GET", "/api/version", cluster.token) == 200
    for address in exporters:
        assert answer(address, "POST", "/api/jobs/", body=job) in (200, 405, 501)  # metrics, whatever is asked
    assert not mark.exists()
    record("S1", "no token: every route of dashboard and agents, five methods", routes=len(paths),
           servers=len(addresses), open_metrics=len(exporters),
           requests=sum(answers.values()), refused=sum(answers.values()), executed=0)  # fmt: skip


DRIVER = "import sys; from cluster.ray_session import ensure_ray; ensure_ray(sys.argv[1])"
RAYLET = "import sys; from ray.scripts.scripts import main; sys.exit(main())"


def outsider(program: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *words]
    given = {**environment(), **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=given, cwd=ROOT)


@pytest.mark.matrix
def test_s2_wrong_token_driver_and_raylet_are_refused(record: Any, cluster: RayCluster, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}  # no token is found there
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    none = {"RAY_AUTH_MODE": "disabled"}
    assert answer(cluster.address, "GET", "/api/version", "0" * 64) == 403
    refused = 0
    for variables in (wrong, none):
        done = outsider(DRIVER, cluster.gcs_address, **home, **variables)
        assert done.returncode != 0 and "cannot be joined" in done.stderr, done.stderr
        folder = tmp_path / f"raylet{refused}"
        words = ("start", "--address", cluster.gcs_address, "--temp-dir", str(folder), "--disable-usage-stats")
        done = outsider(RAYLET, *words, **home, **variables)
        assert done.returncode != 0, done.stdout
        refused += 2
    nodes = outsider(
        "import sys, ray; ray.init(sys.argv[1], log_to_driver=False); print(len(ray.nodes()))",
        cluster.gcs_address, **cluster.variables,
    )  # fmt: skip
    assert nodes.stdout.strip() == "1", nodes.stderr
    record("S2", "wrong token and none: request, driver, raylet", refused=refused + 1, joined=0)


def away() -> str:
    """Return an address of this machine that other machines may reach."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family.name == "AF_INET" and not address.address.startswith("127."):
                return address.address
    pytest.skip("this machine has no address but loopback")


@pytest.mark.matrix
def test_s3_open_ray_off_loopback_is_refused(record: Any, digits: Path, tmp_path: Path) -> None:
    off, run = {"RAY_AUTH_MODE": "disabled"}, tmp_path / "run"
    train = ("train", CONFIG, f"data.shards={digits}", "--run-dir", run)
    refused = [
        subspace(*train, f"ray.address={away()}:6379", variables=off),
        subspace(*train, "--resume", "auto", variables={**off, "RAY_ADDRESS": f"{away()}:6379"}),
        subspace(
            "submit", "ray", CONFIG, "--address", f"http://{away()}:8265", "--run-dir", tmp_path / "r", variables=off
        ),
    ]
    for done in refused:
        assert done.returncode == 2, done.stderr
        [sentence] = [line for line in done.stderr.splitlines() if line.startswith("subspace: ")]
        assert "would let anybody who reaches it run code" in sentence
        assert "Traceback" not in done.stderr
    record("S3", "authentication off: join off loopback, by configuration and environment; submit", rc=2,
           refused=len(refused))  # fmt: skip
