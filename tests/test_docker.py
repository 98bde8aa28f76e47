"""docker/ cannot rot in silence: what it names exists, versions agree, nothing is open or secret.

Whether the images build and the cluster trains is shown by docker/prove.py, which needs podman and minutes.
"""

from __future__ import annotations

import configparser
import http.server
import importlib.util
import os
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launch.config import load_config
from tests.runs import ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"
FINAL = ("cpu", "cuda")
UBUNTU_PYTHON = {"ubuntu22.04": "3.10", "ubuntu24.04": "3.12"}  # what apt installs as python3


class Stage(NamedTuple):
    base: str
    instructions: list[tuple[str, str]]

    def all(self, keyword: str) -> list[str]:
        return [rest for word, rest in self.instructions if word == keyword]


def stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = current = Stage(base, [])
        else:
            current.instructions.append((word, rest))
    return found


def ancestry(name: str) -> list[Stage]:
    """Return a stage and those it is made from, the external image's last."""
    known = stages()
    chain = [known[name]]
    while chain[-1].base in known:
        chain.append(known[chain[-1].base])
    return chain


def external_image(name: str) -> str:
    return ancestry(name)[-1].base


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def pins(path: str) -> dict[str, str]:
    lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]
    return {(r := Requirement(line)).name: str(r.specifier) for line in lines}


COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def command_lines(service: str) -> list[list[str]]:
    """Return the commands of a service, word by word, the shell's lines one by one."""
    entry, command = SERVICES[service]["entrypoint"], SERVICES[service]["command"]
    if entry[0] != "sh":
        return [[*entry, *command]]
    return [shlex.split(line) for line in command[0].replace("\\\n", " ").splitlines()]


def ray_start(service: str) -> list[str]:
    (words,) = [words for words in command_lines(service) if "start" in words]
    return words


def option(words: list[str], name: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), None)


# -- Dockerfile


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"  # nothing but what is named
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    copied = set()
    for stage in stages().values():
        for words in map(str.split, stage.all("COPY")):
            source = next((word.partition("=")[2] for word in words if word.startswith("--from=")), None)
            if source is None:
                copied.update(words[:-1])
            else:
                assert source in stages()
    assert copied == set(let_in)
    assert all((ROOT / path).exists() for path in copied)


def test_base_images_are_pinned_by_tag() -> None:
    for name in stages():
        image, colon, tag = external_image(name).rpartition(":")
        assert colon and image and tag != "latest" and re.search(r"\d+\.\d+", tag), external_image(name)


@pytest.mark.parametrize("target", FINAL)
def test_final_stage(target: str) -> None:
    stage = stages()[target]
    assert [user.split(":")[0] for user in stage.all("USER")] == ["10001"]
    assert stage.all("ENTRYPOINT") == ['["subspace"]']
    assert len(stage.all("HEALTHCHECK")) == 1 and "/opt/subspace/healthcheck.py" in stage.all("HEALTHCHECK")[0]
    assert "docker/healthcheck.py /opt/subspace/" in stage.all("COPY")
    variables = dict(word.split("=", 1) for line in stage.all("ENV") for word in line.split())
    assert variables["OMP_WAIT_POLICY"] == "passive" and variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert variables["RAY_AUTH_MODE"] == "token" and variables["PATH"].startswith("/opt/subspace/bin:")


def test_both_final_stages_do_the_same() -> None:
    cpu, cuda = (repr(stages()[target].instructions) for target in FINAL)
    assert cpu == cuda.replace("cuda-build", "cpu-build")


@pytest.mark.parametrize("target", FINAL)
def test_build_stage_installs_what_is_pinned(target: str) -> None:
    stage = stages()[f"{target}-build"]
    known = setup()["options.extras_require"]
    installs = [line for line in stage.all("RUN") if "pip install" in line]
    assert len(installs) == 2
    if target == "cuda":
        (extras,) = [line.partition("=")[2].split(",") for line in stage.all("ARG") if line.startswith("EXTRAS=")]
        assert "gpu" in extras and set(extras) <= set(known)
        assert "--constraint constraints.txt" in installs[0] and '".[$EXTRAS]"' in installs[0]
    else:
        assert installs[0].count("--require-hashes --only-binary :all:") == installs[0].count("pip install") == 2
    assert "--no-deps" in installs[1]
    packages = {name.strip(" *") for name in setup()["options.packages.find"]["include"].split()}
    assert {f"{name} {name}" for name in packages} <= set(stage.all("COPY"))


# -- requirements-cpu.lock


LOCK = [line for line in (ROOT / "docker/requirements-cpu.lock").read_text().splitlines() if not line.startswith("#")]
LOCKED = dict(line.split(" ")[0].split("==") for line in LOCK)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_has_one_version_and_hash_per_line_and_says_nowhere_to_look() -> None:
    assert len(LOCKED) == len(LOCK) > 50
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+ --hash=sha256:[0-9a-f]{64}", line) for line in LOCK)
    assert "://" not in (ROOT / "docker/requirements-cpu.lock").read_text()


def test_lock_holds_what_is_pinned_and_all_that_is_needed() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {
        canonical(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in map(Requirement, lines)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"})
    }
    locked = {canonical(name): version.partition("+")[0] for name, version in LOCKED.items()}
    assert {name: version for name, version in locked.items() if pinned.get(name, version) != version} == {}
    assert set(locked) - set(pinned) == {"setuptools"}
    extras = setup()["options.extras_require"]
    texts = [setup()["options"]["install_requires"], *(extras[name] for name in ("cpu", "dicom", "deepspeed"))]
    needed = {canonical(Requirement(line).name) for text in texts for line in text.split()}
    assert needed <= set(locked)


def test_versions_agree() -> None:
    tag = external_image("cpu").rpartition(":")[2]
    pythons = {"cpu": tag.split("-")[0], "cuda": UBUNTU_PYTHON[external_image("cuda").rsplit("-", 1)[1]]}
    supported = SpecifierSet(setup()["options"]["python_requires"])
    assert all(f"{python}.0" in supported for python in pythons.values())
    assert external_image("cpu-build") == external_image("cpu")  # a virtual environment holds no interpreter
    assert external_image("cuda-build") == external_image("cuda")
    common, cuda = pins("constraints.txt"), pins("docker/constraints-cuda.txt")
    assert not set(common) & set(cuda)
    assert cuda["faiss-gpu"] == common["faiss-cpu"]
    torch = common["torch"].removeprefix("==")
    assert set(re.findall(r"(\d\S*)\+cpu|torch (\d\S*)", DOCKERFILE.read_text())) == {(torch, ""), ("", torch)}


# -- compose.yaml


def test_services_refer_to_what_exists() -> None:
    for name, service in SERVICES.items():
        build = service["build"]
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]) == DOCKERFILE
        assert build["target"] in FINAL and set(build["args"]) <= {"TORCH_INDEX"}
        assert service["image"] == f"subspace:{build['target']}"
        for volume in service["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"], name
        for other, terms in service.get("depends_on", {}).items():
            assert terms == {"condition": "service_healthy"} and "healthcheck" in SERVICES[other]


def test_shape_of_the_cluster() -> None:
    assert set(SERVICES) == {"ray-head", "ray-worker", "trainer"}
    assert SERVICES["ray-worker"]["deploy"]["replicas"] == 2
    for service in SERVICES.values():
        assert {"runs:/subspace/runs", "shards:/subspace/shards"} <= set(service["volumes"])


def test_training_command_is_a_valid_configuration() -> None:
    (words,) = [words for words in command_lines("trainer") if words[:3] == ["exec", "subspace", "train"]]
    config = load_config(ROOT / words[3], [word for word in words[4:] if re.match(r"[a-z_.]+=", word)])
    assert config.ray.address == f"ray-head:{option(ray_start('ray-head'), '--port')}"
    workers, per_worker = (
        SERVICES["ray-worker"]["deploy"]["replicas"],
        option(command_lines("ray-worker")[0], "--num-cpus"),
    )
    assert config.cluster.num_shards == workers
    assert 0 < config.cluster.num_cpus <= float(per_worker or 0)  # so that no other node can take the actors


def test_ray_commands_use_options_that_ray_has() -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for service in SERVICES:
        words = ray_start(service)
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
        address = option(words, "--address")
        assert "--head" in words if address is None else address.split(":")[0] in SERVICES


def test_ports_are_published_on_loopback_only() -> None:
    for service in SERVICES.values():
        assert "network_mode" not in service and "privileged" not in service and service["cap_drop"] == ["ALL"]
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))


def test_no_secret_is_written_down() -> None:
    for service in SERVICES.values():
        variables = service["environment"]
        assert variables["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in variables
        folder = str(Path(variables["RAY_AUTH_TOKEN_PATH"]).parent)
        (mount,) = [volume for volume in service["volumes"] if volume.split(":")[1] == folder]
        assert mount.endswith(":ro") or service is SERVICES["ray-head"]  # which makes it
    for path in [ROOT / ".dockerignore", *(ROOT / "docker").iterdir()]:
        if path.is_file():
            text = re.sub(r"--hash=sha256:\w+", "", path.read_text())
            assert not re.search(r"[0-9a-fA-F]{32}|[A-Za-z0-9+/]{40}|PRIVATE KEY", text), path
            assert not re.search(r"(TOKEN|SECRET|PASSWORD|KEY)\s*[=:]\s*[\"']?\w", text), path


# -- healthcheck.py


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "docker/healthcheck.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_silent_training_is_ill(check: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text("{}")
    with (run / "train.log").open("w"):
        assert run in check.runs_open_here()
        check.runs_open_here = lambda: {run}
        assert check.trainings() == 0
        for name in ("train.log", "status.json"):
            os.utime(run / name, (0, 0))
        assert check.trainings() == 1
        (run / "metrics.jsonl").write_text("{}\n")  # any of them is a sign of life
        assert check.trainings() == 0


def test_a_training_that_ended_is_no_longer_looked_at(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "train.log").write_text("")
    assert tmp_path not in check.runs_open_here()


@contextmanager
def agent(status: int) -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api/healthz"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_a_ray_node_is_as_well_as_its_agent_says(check: ModuleType, status: int, expected: int) -> None:
    with agent(status) as check.RAY_AGENT:
        assert check.ray_node() == expected


def test_the_agent_is_asked_where_ray_puts_it(check: ModuleType) -> None:
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    port, _, path = check.RAY_AGENT.removeprefix("http://127.0.0.1:").partition("/")
    assert int(port) == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT and f"/{path}" in PUBLIC_EXACT_PATHS


def test_a_ray_node_without_an_agent_is_ill(check: ModuleType) -> None:
    with agent(200) as check.RAY_AGENT:
        pass
    assert check.ray_node() == 1
