"""The dashboard over HTTP: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from launch.dashboard import server
from tests.launch.dashboard.make_runs import make_run

Serving = Callable[..., str]
Cli = Callable[..., tuple[int, str, str]]
TOKEN = "a token of some length"


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    kind = answer.headers["Content-Type"]
    return answer.status, dict(answer.headers), json.loads(body) if kind == "application/json" else body.decode()


def test_runs_and_curves(tmp_path: Path, serving: Serving) -> None:
    for name in ("a", "b & c"):
        make_run(tmp_path / name)
    address = serving(tmp_path)
    status, headers, told = ask(address, "/api/runs")
    assert (status, headers["Cache-Control"], headers["X-Content-Type-Options"]) == (200, "no-store", "nosniff")
    assert told["root"] == tmp_path.name
    assert {row["name"] for row in told["runs"]} == {"a", "b & c"}
    _, _, told = ask(address, f"/api/curves?run=a&run={quote('b & c')}&run=none&more=x")
    assert set(told["curves"]) == {"a", "b & c"}
    assert told["curves"]["a"]["loss"] == told["curves"]["b & c"]["loss"]
    assert ask(address, "/api/curves")[2] == {"curves": {}}


def test_the_page_is_ours_alone(tmp_path: Path, serving: Serving) -> None:
    status, headers, text = ask(serving(tmp_path), "/")
    assert status == 200
    rules = headers["Content-Security-Policy"]
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_only_loopback_hosts_are_answered_without_a_token(tmp_path: Path, serving: Serving) -> None:
    address = serving(tmp_path)
    for path in ("/", "/api/runs"):
        status, _, told = ask(address, path, Host="evil.example")
        assert (status, "loopback" in told["detail"]) == (403, True)
        assert ask(address, path, Host="localhost:1")[0] == 200


def test_with_a_token_the_page_is_open_and_the_data_is_not(tmp_path: Path, serving: Serving) -> None:
    address = serving(tmp_path, TOKEN)
    assert ask(address, "/", Host="others.example")[0] == 200
    for path in ("/api/runs", "/api/curves?run=a"):
        assert ask(address, path)[0] == 401
        assert ask(address, path, Authorization="Bearer wrong")[0] == 401
        assert ask(address, path, Authorization=f"Bearer {TOKEN}", Host="others.example")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
def test_only_get_is_answered(tmp_path: Path, serving: Serving, method: str) -> None:
    connection = http.client.HTTPConnection(serving(tmp_path).removeprefix("http://"), timeout=30)
    connection.request(method, "/api/runs")
    assert connection.getresponse().status == 405


@pytest.mark.parametrize("path", ["/etc/passwd", "/../status.json", "//evil.example/", "/api", "/api/runs/"])
def test_there_is_nothing_else(tmp_path: Path, serving: Serving, path: str) -> None:
    make_run(tmp_path / "a")
    assert ask(serving(tmp_path), path)[0] == 404


def test_too_much_is_refused(tmp_path: Path, serving: Serving) -> None:
    address = serving(tmp_path)
    assert ask(address, "/api/curves?" + "run=a&" * 13)[0] == 400
    assert ask(address, "/api/curves?" + "run=a&" * 200)[2] == {"curves": {}}
    assert ask(address, "/?" + "x" * 70_000)[0] == 414


def test_what_is_no_http_ends_the_connection_and_nothing_else(tmp_path: Path, serving: Serving) -> None:
    address = serving(tmp_path)
    host, port = address.removeprefix("http://").split(":")
    for rubbish in (b"\x16\x03\x01\x02\x00\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n", b"x" * 70_000):
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(rubbish)
            raw.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in raw.recv(1 << 16)
    assert ask(address, "/api/runs")[0] == 200


def test_connections_beyond_the_limit_are_closed(
    tmp_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    address = serving(tmp_path)
    host, port = address.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(2)]
    with socket.create_connection((host, int(port)), timeout=30) as third:
        assert third.recv(1) == b""
    for one in idle:
        one.close()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--host", "0.0.0.0"), "lets other machines look; set a token with --token-env"),
        (("--port", "70000"), "--port must be 0 to 65535"),
        (("--token-env", "NO_SUCH_TOKEN"), "NO_SUCH_TOKEN"),
    ],
)
def test_the_command_refuses(tmp_path: Path, cli: Cli, words: tuple[str, ...], part: str) -> None:
    code, out, err = cli("dashboard", tmp_path, *words)
    assert (code, out) == (2, "")
    assert part in err
    assert cli("dashboard", tmp_path / "none")[0] == 2
