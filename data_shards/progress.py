"""How far a long job is: a bar on a terminal, a log line every 30 seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_LINE_EVERY_S = 30.0
_log = logging.getLogger(__name__)


class Advance(Protocol):
    """Call with the number of items done since the last call."""

    def __call__(self, num: int = 1) -> None: ...


@contextmanager
def meter(title: str, total: int, show: bool) -> Iterator[Advance]:
    """Yield a function to call as items get done; silent unless `show`."""
    if show and sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _lines(title, total, show)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)

        def advance(num: int = 1) -> None:
            bar.advance(task, num)

        yield advance


def _lines(title: str, total: int, show: bool) -> Advance:
    done, last = 0, time.monotonic()

    def advance(num: int = 1) -> None:
        nonlocal done, last
        done += num
        if show and time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            _log.info("%s: %d of %d", title, done, total)

    return advance
