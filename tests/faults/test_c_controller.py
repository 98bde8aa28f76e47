"""The controller decides once: killed around every record, stopped and superseded, started twice, its journal torn.

Here it is a process that answers over a pipe, so that it can be killed at a named point of a commit hundreds of times;
as an actor of Ray it is in test_c_actor.py.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.controller import ControllerCore
from cluster.errors import RunTaken
from cluster.journal import Journal, read_events
from data_shards.errors import DataIntegrityError
from tests.actors import CONFIG

NUM_EPOCHS = 12
NUM_RECORDS = NUM_EPOCHS + 2  # begin, rewind, reports
POINTS = ("before append", "half written", "after append", "before answer", "after answer")
context: Any = multiprocessing.get_context("fork")


class Controller:
    """A controller in a process of its own; `sabotage(core)` is called there first."""

    def __init__(self, path: Path, sabotage: Callable[[ControllerCore], None] = lambda core: None) -> None:
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(path, theirs, self._pipe, sabotage), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return the answer; raises EOFError or OSError when the controller has died, RunTaken when it was refused."""
        self._pipe.send((method, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.close()
        self.process.kill()
        self.process.join()


def _serve(path: Path, pipe: Any, theirs: Any, sabotage: Callable[[ControllerCore], None]) -> None:
    theirs.close()
    core = ControllerCore(CONFIG, Journal(path))
    sabotage(core)
    with suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                answer = getattr(core, method)(*arguments)
            except Exception as error:
                answer = error
            if getattr(core, "dies", None) == "before answer":
                _die()
            pipe.send(answer)
            if getattr(core, "dies", None) == "after answer":
                _die()
    os._exit(0)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(record: int, point: str) -> Callable[[ControllerCore], None]:
    """Return a sabotage that kills the controller around its n-th record."""

    def sabotage(core: ControllerCore) -> None:
        journal = core._journal
        assert journal is not None
        write = journal._write

        def sabotaged(line: bytes) -> None:
            if len(journal.events) != record:
                return write(line)
            if point == "half written":
                os.write(journal._file, line[: len(line) // 2])
            if point in ("before append", "half written"):
                _die()
            write(line)
            if point == "after append":
                _die()
            core.dies = point  # type: ignore[attr-defined]

        journal._write = sabotaged  # type: ignore[method-assign]

    return sabotage


def requests() -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield "begin", (1,)
    for epoch in range(NUM_EPOCHS):
        yield "plan", (epoch, 1)
        yield "report", (epoch, 1, {"nmi": {"mean": 0.5}}, np.random.default_rng(epoch).standard_normal(32).tolist())
    yield "snapshot", ()


def carried_through(path: Path, sabotage: Callable[[ControllerCore], None]) -> tuple[list[Any], int]:
    """Return all answers, and how often the controller had to be started again."""
    controller, answers, restarts = Controller(path, sabotage), [], 0
    for method, arguments in requests():
        while True:
            try:
                answers.append(controller.ask(method, *arguments))
                break
            except (EOFError, OSError):
                controller.close()
                assert controller.process.exitcode == -signal.SIGKILL
                restarts += 1
                controller = Controller(path)
    controller.close()
    return answers, restarts


def decisions_in(path: Path) -> list[str]:
    journal = Journal(path)
    journal.close()
    return [e["growth"]["decision_id"] for e in journal.events if e["kind"] == "report" and e["growth"] is not None]


@pytest.mark.matrix
def test_c1_killed_around_every_record(record: Any, tmp_path: Path) -> None:
    expected, _ = carried_through(tmp_path / "undisturbed.jsonl", lambda core: None)
    decided = decisions_in(tmp_path / "undisturbed.jsonl")
    assert len(decided) >= 2
    trials = kills = 0
    for point in POINTS:
        for number in range(NUM_RECORDS):
            path = tmp_path / f"{trials}.jsonl"
            answers, restarts = carried_through(path, dying(number, point))
            assert answers == expected, (point, number)
            assert decisions_in(path) == decided, (point, number)
            trials, kills = trials + 1, kills + restarts
    assert kills == trials
    record("C1", "SIGKILL at five points of every record", trials=trials, restarts=kills, bitwise=True,
           duplicated=0, lost=0)  # fmt: skip


def test_c2_stopped_and_superseded_where_locks_are_not_honoured(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst case: nothing kills the old controller, and the filesystem grants every lock."""
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    script, refused = list(requests())[:-1], 0
    trials = 20
    for trial in range(trials):
        path = tmp_path / f"{trial}.jsonl"
        zombie, stop = Controller(path), random.Random(trial).randrange(3, len(script) - 3)
        for method, arguments in script[:stop]:
            zombie.ask(method, *arguments)
        os.kill(zombie.process.pid, signal.SIGSTOP)
        successor = Controller(path)
        successor.ask("begin", 2)
        before = path.read_bytes()
        os.kill(zombie.process.pid, signal.SIGCONT)
        late = next(request for request in script[stop:] if request[0] == "report")
        for _ in range(3):
            with pytest.raises(RunTaken, match="superseded"):
                zombie.ask(late[0], *late[1])
            refused += 1
        assert path.read_bytes() == before
        successor.ask("begin", 3)  # it goes on
        zombie.close()
        successor.close()
        decisions_in(path)  # sound
    record("C2", "controller stopped, superseded, continued; locks not honoured", trials=trials, refused=refused,
           stale_writes=0)  # fmt: skip


def _begin(path: Path, hold: bool, barrier: Any, results: Any) -> None:
    """Open the journal and write to it at the same moment as another process."""
    try:
        barrier.wait()
        journal = Journal(path, lock_timeout_s=0.0 if hold else 10.0, hold=hold)
        if not hold:
            barrier.wait()
        journal.append({"kind": "begin", "attempt": os.getpid()})
        results.put("won")
    except RunTaken:
        results.put("refused")
    barrier.wait()  # whoever holds the lock keeps it until both have tried
    results.close()
    results.join_thread()
    os._exit(0)


@pytest.mark.matrix
@pytest.mark.parametrize("hold", [True, False])
def test_c3_two_controllers_at_once(record: Any, tmp_path: Path, hold: bool) -> None:
    trials, double = 50, 0
    for trial in range(trials):
        barrier, results, path = context.Barrier(2), context.Queue(), tmp_path / f"{trial}.jsonl"
        pair = [context.Process(target=_begin, args=(path, hold, barrier, results), daemon=True) for _ in range(2)]
        for process in pair:
            process.start()
        outcome = sorted(results.get(timeout=30) for _ in pair)
        for process in pair:
            process.join()
        assert len(read_events(path)) == 1
        double += outcome != ["refused", "won"]
    assert double == 0
    how = "lock held throughout" if hold else "lock held for each record"
    record("C3", f"two controllers open one journal and write at once, {how}", trials=trials, double_leaders=double)


def test_c4_torn_tail_and_flipped_bits(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    carried_through(path, lambda core: None)
    content = path.read_bytes()
    last = content[:-1].rindex(b"\n") + 1
    torn = 0
    for length in range(last, len(content)):
        path.write_bytes(content[:length])
        journal = Journal(path)
        journal.close()
        assert len(journal.events) == NUM_RECORDS - (length < len(content) - 1)
        torn += 1
    generator, flips = random.Random(0), 500
    for _ in range(flips):
        damaged = bytearray(content)
        damaged[generator.randrange(last)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataIntegrityError, match="is damaged"):
            Journal(path)
        assert path.read_bytes() == bytes(damaged)  # nothing is repaired
    record("C4", "last record torn at every byte; bit flips before it", torn=torn, flips=flips, detected=flips)
