"""Decode foreign bytes in processes of their own: a decoder that dies, hangs or eats memory costs one image.

Workers are forked, so that they know what the parent knows, with caps on memory, processor time and files. They get
item numbers and answer with JSON and bytes: nothing of theirs is ever unpickled. An item whose worker died or took too
long is tried once more in a fresh one (the machine may have been short of memory) and then given up with the reason.
What this cannot hold is a decoder that is taken over: it has the rights of the user.
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import resource
import signal
import struct
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import psutil
from PIL import Image

from data_shards.decode import Unreadable, guarded
from data_shards.errors import UserError

Reply = tuple[dict[str, Any], bytes]
_ITEM, _FRAME = struct.Struct("<q"), struct.Struct("<IQ")
_AHEAD = 16  # items a worker may have waiting, so that it never waits for the parent
_MAX_FACTS_BYTES = 1 << 20
_PIPE_BYTES = 1 << 18
_TRIES = 2
_REFUSED = "unreadable"


@dataclass(frozen=True)
class Limits:
    """Caps of one worker: `memory_bytes` above what it is born with, `seconds` of clock and of processor per item."""

    memory_bytes: int = 2 << 30
    seconds: int = 60
    num_files: int = 64


@dataclass
class _Worker:
    pid: int
    requests: int  # file descriptors of the parent's ends
    replies: int
    since: float = 0.0
    items: deque[int] = field(default_factory=deque)
    received: bytearray = field(default_factory=bytearray)

    def frames(self) -> Iterator[Reply]:
        """Take the complete answers out of what was received; raises ValueError for what no worker writes."""
        while len(self.received) >= _FRAME.size:
            num_facts, num_bytes = _FRAME.unpack_from(self.received)
            if num_facts > _MAX_FACTS_BYTES or not self.items:
                raise ValueError("not an answer")
            start, end = _FRAME.size + num_facts, _FRAME.size + num_facts + num_bytes
            if len(self.received) < end:
                return
            facts = json.loads(self.received[_FRAME.size : start])
            blob = bytes(self.received[start:end])
            del self.received[:end]
            yield facts, blob


class Sandbox:
    """`num_workers` confined processes that turn item numbers into (facts, bytes) with `step`; use it in a `with`."""

    def __init__(self, step: Callable[[int], Reply], num_workers: int = 1, limits: Limits | None = None) -> None:
        """`step` raises Unreadable (or anything) for an item that cannot be used."""
        self._step, self._num_workers, self._limits = step, num_workers, limits or Limits()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            _end(worker)
        self._workers.clear()

    def run(self, items: Sequence[int]) -> Iterator[Reply | Unreadable]:
        """Yield the answer of every item, in order; raises UserError when no process can be started."""
        waiting, done, deaths = deque(items), dict[int, Reply | Unreadable](), Counter[int]()
        self._workers += [self._start() for _ in range(min(self._num_workers, len(items)) - len(self._workers))]
        for item in items:
            while item not in done:
                self._hand_out(waiting)
                self._collect(waiting, done, deaths)
            yield done.pop(item)

    def _hand_out(self, waiting: deque[int]) -> None:
        while waiting:
            worker = min(self._workers, key=lambda worker: len(worker.items))
            if len(worker.items) >= _AHEAD:
                return
            if not worker.items:
                worker.since = time.monotonic()
            worker.items.append(waiting.popleft())
            with suppress(BrokenPipeError):  # it has died, as its end of the answers will say
                os.write(worker.requests, _ITEM.pack(worker.items[-1]))

    def _collect(self, waiting: deque[int], done: dict[int, Reply | Unreadable], deaths: Counter[int]) -> None:
        """Wait for answers, and for the end of workers that died or took too long."""
        busy = [worker for worker in self._workers if worker.items]
        patience = min(worker.since for worker in busy) + self._limits.seconds - time.monotonic()
        ready = wait([worker.replies for worker in busy], max(0.0, patience))
        for worker in busy:
            late = time.monotonic() - worker.since > self._limits.seconds
            if not (_receive(worker, done) if worker.replies in ready else not late):
                self._replace(worker, waiting, done, deaths)

    def _replace(
        self, worker: _Worker, waiting: deque[int], done: dict[int, Reply | Unreadable], deaths: Counter[int]
    ) -> None:
        reason = self._reason(_end(worker))
        culprit = worker.items[0]
        deaths[culprit] += 1
        if deaths[culprit] >= _TRIES:
            done[worker.items.popleft()] = Unreadable(reason)
        waiting.extendleft(reversed(worker.items))
        self._workers[self._workers.index(worker)] = self._start()

    def _reason(self, code: int) -> str:
        if -code in (signal.SIGKILL, signal.SIGXCPU):  # ours, or the kernel's when memory is short
            return f"decoding took more than {self._limits.seconds} s or the memory of the machine"
        return f"the decoder died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def _start(self) -> _Worker:
        try:
            (take, requests), (replies, give) = os.pipe(), os.pipe()
            with suppress(OSError):  # more than the user may have; the default is slower, not wrong
                fcntl.fcntl(give, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            pid = os.fork()
        except OSError as error:
            raise UserError(f"No process to decode images in could be started: {error.strerror}.") from None
        if pid == 0:
            try:
                _confine(self._limits, (take, give))
                _serve(self._step, take, give, self._limits)
            finally:
                os._exit(1)
        os.close(take)
        os.close(give)
        return _Worker(pid, requests, replies)


def _receive(worker: _Worker, done: dict[int, Reply | Unreadable]) -> bool:
    """Take what a worker has written; return whether it is still of use."""
    data = os.read(worker.replies, _PIPE_BYTES)
    worker.received += data
    try:
        for facts, blob in worker.frames():
            done[worker.items.popleft()] = Unreadable(facts[_REFUSED]) if _REFUSED in facts else (facts, blob)
            worker.since = time.monotonic()
    except (ValueError, TypeError):
        return False
    return bool(data)


def _end(worker: _Worker) -> int:
    """Kill a worker, if it has not ended by itself, and return its exit code."""
    os.kill(worker.pid, signal.SIGKILL)  # its number is ours until it is waited for
    os.close(worker.requests)
    os.close(worker.replies)
    return os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])


# -- in the worker


def _confine(limits: Limits, keep: tuple[int, int]) -> None:
    """Give up what decoding does not need: terminal, files of the parent, signals, memory, room on the disk."""
    gc.freeze()  # or a finaliser of the parent's objects could close a file of ours
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    low, high = sorted(keep)
    for first, last in ((3, low), (low + 1, high), (high + 1, 1 << 20)):
        os.closerange(first, last)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    _lower(resource.RLIMIT_AS, psutil.Process().memory_info().vms + limits.memory_bytes)
    _lower(resource.RLIMIT_NOFILE, max(keep) + limits.num_files)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _serve(step: Callable[[int], Reply], take: int, give: int, limits: Limits) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    while len(data := os.read(take, _ITEM.size)) == _ITEM.size:
        item = _ITEM.unpack(data)[0]
        # ends a worker that spins for a parent that is gone, and who would kill it
        allowed = int(time.process_time()) + limits.seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (allowed if hard < 0 else min(allowed, hard), hard))
        try:
            facts, blob = guarded(lambda: step(item))  # noqa: B023 - called at once
        except Unreadable as reason:
            facts, blob = {_REFUSED: str(reason)}, b""
        text = json.dumps(facts).encode()
        head = _FRAME.pack(len(text), len(blob)) + text
        written = os.writev(give, [head, blob])  # one wake-up of the parent for a small answer
        rest = memoryview(blob)[written - len(head) :] if written >= len(head) else memoryview(head[written:] + blob)
        while rest:
            rest = rest[os.write(give, rest) :]
