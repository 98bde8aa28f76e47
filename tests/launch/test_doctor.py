"""`subspace doctor`: what it finds fine here, and what it would find wrong."""

from __future__ import annotations

import importlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import doctor

Cli = Callable[..., tuple[int, str, str]]


def test_the_command_says_a_line_for_everything(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("doctor", "--folder", tmp_path, "--json")
    findings = json.loads(out)
    wrong = [finding for finding in findings if finding["verdict"] == "wrong"]
    assert code == int(bool(wrong))
    by_name = {finding["what"]: finding for finding in findings}
    assert {"packages", "PyTorch", "faiss", "Ray's token", "ports", "clock", "shared memory", "disk"} <= set(by_name)
    assert importlib.import_module("torch").__version__ in by_name["PyTorch"]["found"]
    assert by_name["write access"]["verdict"] == "ok"
    assert list(tmp_path.iterdir()) == []
    text_code, text, _ = cli("doctor", "--folder", tmp_path)
    assert text_code == code
    assert all(finding["what"] in text and finding["remedy"] in text for finding in findings)


def test_packages_are_compared_with_what_is_asked_for() -> None:
    wanted = [
        "numpy>=1",
        "scipy>=99",
        "no-such-package",
        "no-such-package; extra == 'dev'",
        "numpy>=99; extra == 'dev'",
        "no-such-package; python_version < '3'",
    ]
    fine, *wrong = doctor.packages(wanted)
    assert (fine.verdict, fine.found) == ("ok", "1 as setup.cfg asks for")
    assert [finding.what for finding in wrong] == ["scipy", "no-such-package", "numpy"]
    assert ">=99 is needed" in wrong[0].found and wrong[0].remedy == "pip install -c constraints.txt 'scipy>=99'"


def test_a_program_that_is_not_installed_is_told_so() -> None:
    assert doctor.requirements("no-such-distribution") == []
    assert [finding.verdict for finding in doctor.packages([])] == ["warning"]
    assert "torch>=2.13" in doctor.requirements()


def test_gpus_that_pytorch_does_not_know_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.import_module("torch")
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch knows GPUs")
    monkeypatch.setattr(doctor, "num_visible_gpus", lambda: 2)
    assert [finding.verdict for finding in doctor.torch()] == ["ok", "wrong"]


def test_tokens(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    for environment, verdict, remedy in (
        ({}, "ok", ""),
        ({"RAY_AUTH_TOKEN": "secret"}, "ok", ""),
        ({"RAY_AUTH_MODE": "disabled"}, "warning", "unset it"),
        ({"RAY_AUTH_TOKEN_PATH": str(token)}, "wrong", f"chmod 600 {token}"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, "wrong", "RAY_AUTH_TOKEN_PATH"),
    ):
        (found,) = doctor.ray_token(environment)
        assert found.verdict == verdict and remedy in found.remedy and "secret" not in found.found
    token.chmod(0o600)
    assert doctor.ray_token({"RAY_AUTH_TOKEN_PATH": str(token)})[0].verdict == "ok"


@pytest.mark.parametrize(("gib", "verdict"), [(None, "warning"), (0.0625, "wrong"), (1, "warning"), (8, "ok")])
def test_shared_memory(gib: float | None, verdict: str) -> None:
    (found,) = doctor.shared_memory(None if gib is None else int(gib * doctor.GIB))
    assert found.verdict == verdict and bool(found.remedy) == (verdict != "ok")


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        found = {finding.what: finding for finding in doctor.network()}
    assert found["ports"].verdict == "ok"
    assert found["MASTER_PORT"].verdict == "warning"
    monkeypatch.setenv("MASTER_PORT", "70000")
    assert {finding.what: finding.verdict for finding in doctor.network()}["MASTER_PORT"] == "wrong"


def test_a_place_that_cannot_be_written_to() -> None:
    assert doctor.writing(Path("/proc/self"))[0].verdict == "wrong"


@pytest.mark.parametrize(("limit", "verdict"), [(1024, "warning"), (65536, "ok"), (-1, "ok")])
def test_open_files(limit: int, verdict: str) -> None:
    assert doctor.open_files(limit)[0].verdict == verdict


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> list[doctor.Finding]:
        raise RuntimeError("libcudart.so is missing")

    monkeypatch.setattr(doctor, "torch", broken)
    found = {finding.what: finding for finding in doctor.examine(tmp_path)}
    assert (found["PyTorch"].verdict, found["PyTorch"].found) == ("wrong", "RuntimeError: libcudart.so is missing")
