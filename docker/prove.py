"""Prove Dockerfile and compose.yaml where no Docker engine is: with podman, podman-compose and buildah, as root.

    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm BASE
    python docker/prove.py --base BASE [--bind PATH ...] [--build-arg TORCH_INDEX=]

BASE stands in for the base image of target cpu where no registry can be reached; without it the image is pulled.
--bind shows files of this machine to the build only, for example a /etc/pip.conf and what it names. The build context
is the commit that is checked out. What is shown, each by an assertion:

    image    the target builds; it is not root, has no token, answers `--help`, trains configs/smoke/fixed.yaml; the
             health check calls a training well while it works and ill while it is stopped
    compose  the services of compose.yaml come up in the order of depends_on, each healthy before the next; Ray refuses
             a caller without the token and no log, variable or command line holds it; the k-means actors are on the
             workers; a stopped trainer has saved (exit code 75) and goes on to the end when it is started again

podman 4 needs systemd to run health checks by the clock, so this script runs them. Everything is in one temporary
folder, which is removed at the end, as are containers, volumes and the network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
IMAGE = "localhost/subspace:cpu"
CONFIGURATION = """
[containers]
default_ulimits = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
# podman asks for more open files than a small machine allows.
PODMAN = """#!/bin/sh
export CONTAINERS_CONF={folder}/containers.conf
verb=$1; shift
case $verb in create|run) set -- --ulimit host "$@";; esac
exec podman --root {folder}/storage --runroot {folder}/state --storage-driver overlay "$verb" "$@"
"""


class Podman:
    """podman and podman-compose with a storage of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "podman"
        (folder / "containers.conf").write_text(CONFIGURATION)
        self.path.write_text(PODMAN.format(folder=folder))
        self.path.chmod(0o755)

    def __call__(self, *words: str, check: bool = True) -> str:
        done = subprocess.run([str(self.path), *words], capture_output=True, text=True)
        if check and done.returncode:
            raise SystemExit(f"podman {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def code(self, *words: str) -> int:
        return subprocess.run([str(self.path), *words], capture_output=True).returncode

    def compose(self, context: Path, *words: str) -> None:
        command = ["podman-compose", "--podman-path", str(self.path), "-f", "docker/compose.yaml", *words]
        done = subprocess.run(command, cwd=context, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")

    def wait_healthy(self, container: str) -> None:
        wait_until(lambda: self.code("healthcheck", "run", container) == 0, f"{container} to be healthy")

    def output(self, container: str) -> str:
        done = subprocess.run([str(self.path), "logs", container], capture_output=True, text=True)
        return done.stdout + done.stderr

    def close(self) -> None:
        for words in (["rm", "-af"], ["volume", "rm", "-af"], ["pod", "rm", "-af"], ["network", "prune", "-f"]):
            self(*words, check=False)
        subprocess.run(
            ["umount", str(self.folder / "storage/overlay")], capture_output=True
        )  # podman binds it to itself
        shutil.rmtree(self.folder)


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def wait_until(condition: Any, what: str, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {timeout_s:g} s for {what}")
        time.sleep(1)


def build(podman: Podman, context: Path, base: Path | None, options: list[str]) -> None:
    """Build target cpu of the real Dockerfile; `base` stands in for its base image."""
    if base is not None:
        name = re.search(r"^FROM (\S+) AS cpu-base", (context / "docker/Dockerfile").read_text(), re.MULTILINE)
        assert name
        with subprocess.Popen(["tar", "-C", str(base), "-c", "."], stdout=subprocess.PIPE) as archive:
            podman_import = [str(podman.path), "import", "-", f"docker.io/library/{name[1]}"]
            subprocess.run(podman_import, stdin=archive.stdout, check=True, capture_output=True)
        options = [*options, "--pull=never"]
    words = ["build", "--isolation", "chroot", "--format", "docker", "--target", "cpu", "--tag", IMAGE, *options]
    podman(*words, "-f", str(context / "docker/Dockerfile"), str(context))
    say("built " + podman("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}", IMAGE))


def prove_image(podman: Podman) -> None:
    settings = json.loads(podman("inspect", IMAGE))[0]["Config"]
    assert settings["Entrypoint"] == ["subspace"] and settings["User"] == "10001:10001", settings
    assert "train" in podman("run", "--rm", IMAGE)
    assert podman("run", "--rm", "--entrypoint", "id", IMAGE, "-u") == "10001"
    assert not podman(
        "run", "--rm", "--entrypoint", "find", IMAGE, "/home/subspace/.ray", "/subspace/runs", "-type", "f"
    )
    say("the entrypoint answers, as user 10001")

    words = ["train", "configs/smoke/fixed.yaml", "--run-dir", "runs/smoke", "train.steps_per_epoch=200"]
    podman("run", "-d", "--name", "smoke", "--init", "-e", "SUBSPACE_STALL_S=5", IMAGE, *words)
    training = ["exec", "smoke", "python", "/opt/subspace/healthcheck.py"]
    wait_until(lambda: "last sign of life" in podman(*training, check=False), "the training")
    podman("healthcheck", "run", "smoke")
    ranks = ["exec", "smoke", "python", "-c"]
    signal = "import psutil, sys; [getattr(p, '{}')() for p in psutil.process_iter() if 'rank' in p.cmdline()]"
    podman(*ranks, signal.format("suspend"))
    wait_until(lambda: podman.code("healthcheck", "run", "smoke") != 0, "the stopped training to be called ill", 60)
    podman(*ranks, signal.format("resume"))
    podman.wait_healthy("smoke")
    assert podman("wait", "smoke") == "0", podman.output("smoke")
    say("trains; a stopped training is called ill")


def prove_compose(podman: Podman, context: Path) -> None:
    services = yaml.safe_load((context / "docker/compose.yaml").read_text())["services"]
    names = {
        service: [f"subspace_{service}_{i + 1}" for i in range(int(settings.get("deploy", {}).get("replicas", 1)))]
        for service, settings in services.items()
    }
    started: list[str] = []
    while left := [s for s in services if s not in started]:
        service = next(s for s in left if set(services[s].get("depends_on", {})) <= set(started))
        podman.compose(context, "up", "-d", "--no-build", "--no-deps", service)
        for name in names[service]:
            podman.wait_healthy(name)
        say(f"{service}: {len(names[service])} healthy")
        started.append(service)
    (trainer,), (head,) = names["trainer"], names["ray-head"]

    assert status_of("http://127.0.0.1:8265/api/jobs/") == 401
    token = podman("exec", head, "cat", "/home/subspace/.ray/auth_token")
    assert status_of("http://127.0.0.1:8265/api/jobs/", token) == 200
    wait_until(lambda: "epoch   1" in podman.output(trainer), "the second epoch")
    for name in [name for group in names.values() for name in group]:
        lines = podman("exec", name, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", check=False)
        variables = podman("exec", name, "sh", "-c", "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '", check=False)
        assert "RAY_AUTH_TOKEN_PATH=" in variables
        assert not any(token in text for text in (lines, variables, podman.output(name), podman("inspect", name))), name
        assert ("ShardActor" in lines) == (name in names["ray-worker"]), (name, lines)
    say("401 without the token, 200 with it; it is in no log and no variable; the k-means actors are on the workers")

    podman("stop", "-t", "240", trainer)
    assert podman("inspect", "-f", "{{.State.ExitCode}}", trainer) == "75", podman.output(trainer)
    say("the stopped trainer saved: exit code 75")
    podman("start", trainer)
    assert podman("wait", trainer) == "0", podman.output(trainer)
    last = next(line for line in reversed(podman.output(trainer).splitlines()) if "epoch " in line)
    say(f"started again, it went on to the end: {last}")
    podman.compose(context, "down", "--volumes")


def status_of(url: str, token: str | None = None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def main() -> None:
    parser = argparse.ArgumentParser(description="Prove Dockerfile and compose.yaml with podman.")
    parser.add_argument("--base", type=Path, help="folder with a root file system that stands in for the base image")
    parser.add_argument("--bind", action="append", default=[], help="PATH or PATH:TARGET, shown to the build")
    parser.add_argument("--build-arg", action="append", default=[])
    given = parser.parse_args()
    missing = [name for name in ("podman", "podman-compose", "buildah", "runc") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        sys.exit(f"needs root and {', '.join(missing) or 'nothing else'}")
    binds = [(path, target or path) for path, _, target in (bind.partition(":") for bind in given.bind)]
    options = [word for path, target in binds for word in ("--volume", f"{path}:{target}:ro")]
    options += [word for argument in given.build_arg for word in ("--build-arg", argument)]
    podman = Podman(Path(tempfile.mkdtemp(prefix="prove.")))
    try:
        context = podman.folder / "context"
        context.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(context)], input=archive, check=True)
        build(podman, context, given.base, options)
        prove_image(podman)
        prove_compose(podman, context)
    finally:
        podman.close()


if __name__ == "__main__":
    main()
