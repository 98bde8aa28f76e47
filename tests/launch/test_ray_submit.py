"""What `subspace submit ray` checks before anything is sent; the cluster itself is in tests/whole/test_ray_job.py."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from launch import ray_submit
from launch.config import RunConfig, load_config
from launch.ray_room import NoRoom, asked, check_room
from tests.runs import ROOT

CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
Submit = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # set, so that what the command sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def submit(cli: Submit) -> Submit:
    """Return a function that runs `submit ray` with more words: exit code, output, error."""
    return partial(cli, "submit", "ray")


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, error = result
    assert (code, out) == (2, "")
    [sentence] = error.splitlines()
    for word in ("subspace: ", *words):
        assert word in sentence


class Pretender(http.server.BaseHTTPRequestHandler):
    """Answers everything with what the test wants."""

    answer: tuple[int, str] = (200, "")

    def do_GET(self) -> None:
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1].encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def pretender() -> Iterator[Callable[[int, str], str]]:
    """Return a function that serves one answer and returns the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pretender)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def serve(status: int, text: str) -> str:
        Pretender.answer = (status, text)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    server.shutdown()
    server.server_close()
    thread.join()


# -- the address and the token


def test_address_is_asked_for(submit: Submit) -> None:
    refused(submit(CONFIG), "--address http://HEAD:8265")


def test_address_of_something_else_than_a_dashboard(submit: Submit) -> None:
    refused(submit(CONFIG, "--address", "HEAD:6379"), "HEAD:6379 is not the address of a dashboard")


def test_missing_token(submit: Submit, tmp_path: Path) -> None:
    refused(submit(CONFIG, "--address", "http://127.0.0.1:1"), "no token", str(tmp_path / "home"), "RAY_AUTH_TOKEN")


def test_token_file_that_is_not_there(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/file")
    refused(submit(CONFIG, "--address", "http://127.0.0.1:1"), "no token", "/no/such/file has none")


def test_nobody_listens(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret" * 10)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        refused(submit(CONFIG, "--address", address), f"no Ray dashboard answers at {address}", "refused")


def test_somebody_listens_and_never_answers(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret" * 10)
    monkeypatch.setattr(ray_submit, "ANSWER_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        refused(submit(CONFIG, "--address", address), f"no Ray dashboard answers at {address}", "timed out")


@pytest.mark.parametrize(("status", "text"), [(404, ""), (200, "<html>"), (200, json.dumps({"version": 3}))])
def test_somebody_else_answers(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, pretender: Callable[[int, str], str], status: int, text: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret" * 10)
    refused(submit(CONFIG, "--address", pretender(status, text)), "no Ray dashboard")


def test_cluster_without_authentication(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, pretender: Callable[[int, str], str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret" * 10)
    address = pretender(200, json.dumps({"version": "4", "ray_version": "2.60.0"}))
    refused(submit(CONFIG, "--address", address), "lets anybody run code", "RAY_AUTH_MODE=token")


# -- the working directory


def test_working_dir_that_is_not_there(submit: Submit) -> None:
    refused(submit("c.yaml", "--working-dir", "nowhere", "--dry-run"), "--working-dir nowhere is not a folder")


def test_working_dir_without_the_configuration(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    refused(submit("c.yaml", "--working-dir", "code", "--dry-run"), "--working-dir code has no c.yaml")


def test_working_dir_that_is_too_large(submit: Submit, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "c.yaml").write_text(CONFIG.read_text())
    with (folder / "images.bin").open("wb") as file:
        os.truncate(file.fileno(), 150 << 20)
    refused(submit("c.yaml", "--working-dir", "code", "--dry-run"), "150 MiB", ".gitignore")
    (folder / ".gitignore").write_text("*.bin\n")
    code, out, error = submit("c.yaml", "--working-dir", "code", "--dry-run")
    assert (code, error) == (0, "")
    assert f"uploaded      {folder}" in out


# -- what is sent


def test_dry_run_says_what_would_be_sent(submit: Submit, tmp_path: Path) -> None:
    words = ("--num-workers", "4", "--gpus-per-worker", "0.75", "cluster.num_gpus=0.25", "--run-dir", "r")
    code, out, error = submit(CONFIG, *words, "--dry-run")
    assert (code, error) == (0, "")
    assert f"python -m launch ray-job {tmp_path / 'r'}" in out
    assert "4 workers of 1 CPU and 0.75 GPU and 4 k-means actors of 0.25 GPU" in out
    assert str(tmp_path / "shards" / "digits16") in out
    assert not (tmp_path / "r").exists()


def test_two_workers_on_one_gpu_are_refused(submit: Submit) -> None:
    refused(submit(CONFIG, "--num-workers", "2", "--gpus-per-worker", "0.5", "--dry-run"), "one GPU", "NCCL")


def test_wrong_configurations_are_refused_here(submit: Submit) -> None:
    refused(submit(CONFIG, "train.epochz=3", "--dry-run"), "unknown key 'train.epochz'")
    refused(submit(CONFIG, "--num-workers", "3", "--dry-run"), "not divisible by 3")


def config(*words: str) -> RunConfig:
    return load_config(CONFIG, list(words))


def test_configuration_arrives_as_it_was(tmp_path: Path) -> None:
    sent = ray_submit.anchored(config("data.build=folder:$HOME images", "model.weights=w.pth"))
    assert ray_submit.unpacked(ray_submit.packed(sent)) == sent
    assert "$" not in ray_submit.packed(sent)
    assert sent.data.shards == str(tmp_path / "shards" / "digits16")
    assert sent.data.build == f"folder:{tmp_path}/$HOME images"
    assert sent.model.weights == str(tmp_path / "w.pth")
    assert config("ray.cpus_per_worker=3").launch.threads is None
    assert ray_submit.anchored(config("ray.cpus_per_worker=3")).launch.threads == 3
    assert ray_submit.anchored(config("ray.cpus_per_worker=3", "launch.threads=2")).launch.threads == 2


def test_no_secret_is_in_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret" * 10)
    job = ray_submit.request(config("name=a.run=7"), tmp_path / "r r", ray_submit.SubmitOptions())
    assert "secret" * 10 not in json.dumps(job)
    assert job["entrypoint"].endswith(f"ray-job '{tmp_path / 'r r'}'")
    assert job["submission_id"].startswith("a-run-7-")
    assert int(job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > config().ray.stop_timeout_s


# -- room

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {}]


@pytest.mark.parametrize(
    "words",
    [
        ("ray.cpus_per_worker=4", "ray.gpus_per_worker=1"),
        ("ray.cpus_per_worker=3", "cluster.num_cpus=1"),
        ("ray.gpus_per_worker=0.75", "cluster.num_gpus=0.25"),
        ("ray.cpus_per_worker=50", "ray.autoscaling=true"),
        ("ray.cpus_per_worker=4", "cluster.num_cpus=9", "cluster.backend=local"),
    ],
)
def test_what_fits_is_let_through(words: tuple[str, ...]) -> None:
    check_room(config(*words), NODES)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ray.cpus_per_worker=3", "cluster.num_cpus=1.5"), "need 9 CPU, and the whole cluster has 8"),
        (("ray.gpus_per_worker=1", "cluster.num_gpus=0.25"), "need 2.5 GPU, and the whole cluster has 2"),
        (("launch.nproc=1", "ray.cpus_per_worker=5"), "no node of the cluster holds a worker of 5 CPU"),
        (("launch.nproc=1", "cluster.num_cpus=4.5"), "no node of the cluster holds a k-means actor of 4.5 CPU"),
        (("cluster.num_shards=9", "cluster.num_cpus=1"), "need 11 CPU"),
    ],
)
def test_what_can_never_fit_is_refused(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(NoRoom, match=sentence) as refusal:
        check_room(config(*words), NODES)
    assert refusal.value.exit_code == 2
    assert asked(config(*words)).split(" and ")[0].startswith(f"{config(*words).launch.nproc} workers")
