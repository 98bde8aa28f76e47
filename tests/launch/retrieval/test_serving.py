"""What `subspace serve` refuses before it starts anything."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no such host"])
def test_other_machines_need_a_token(run: Path, cli: Cli, host: str) -> None:
    code, out, err = cli("serve", run, "--host", host)
    assert code == 2
    assert "--token-env" in err
    assert len(err.splitlines()) == 1
    assert not out


def test_what_cannot_be_is_one_sentence(run: Path, cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, part in (
            (("serve", run, "--replicas", "0"), "--replicas"),
            (("serve", run, "--port", "70000"), "--port"),
            (("serve", run, "--max-upload-mib", "0"), "--max-upload-mib"),
            (("serve", run, "--index", tmp_path), "subspace index"),
            (("serve", tmp_path), "not a run folder"),
            (("serve", run, "--port", str(taken.getsockname()[1])), "cannot listen"),
        ):
            code, out, err = cli(*words)
            assert code == 2, err
            assert part in err
            assert len(err.splitlines()) == 1
            assert not out
