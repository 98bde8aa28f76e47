"""A dashboard on a free port of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launch.dashboard.runs import Shelf
from launch.dashboard.server import Server
from launch.listening import Address, bound, told


@pytest.fixture
def serving() -> Iterator[Callable[..., str]]:
    """Return a function that serves a folder, with a token if given, and returns the address."""
    with ExitStack() as ends:

        def start(root: Path, token: str = "") -> str:
            listener = ends.enter_context(bound(Address(port=0)))
            server = ends.enter_context(Server(listener, Shelf(root), token))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            ends.callback(thread.join, 10)
            ends.callback(server.shutdown)
            return told(listener)

        yield start
