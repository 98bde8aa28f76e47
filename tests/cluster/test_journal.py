"""The journal under torn writes, damage and a second owner (faults C3 and C4)."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
from pathlib import Path

import pytest

from cluster.errors import RunTaken
from cluster.journal import Journal
from data_shards.errors import DataIntegrityError

EVENTS = [{"kind": "begin", "attempt": 1}, {"kind": "report", "epoch": 0, "metric": 0.25}, {"kind": "nøte", "x": [1]}]


def written(path: Path) -> bytes:
    journal = Journal(path)
    for event in EVENTS:
        journal.append(event)
    journal.close()
    return path.read_bytes()


def read(path: Path) -> list[dict[str, object]]:
    journal = Journal(path)
    try:
        return journal.events
    finally:
        journal.close()


def test_events_survive_reopening(tmp_path: Path) -> None:
    written(tmp_path / "run" / "journal.jsonl")
    assert read(tmp_path / "run" / "journal.jsonl") == EVENTS


def test_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    content = written(path)
    start = content[:-1].rindex(b"\n") + 1  # of the last record
    for length in range(start, len(content)):
        path.write_bytes(content[:length])
        kept = read(path)
        whole = length >= len(content) - 1  # only the end of line is missing: nothing was lost
        assert kept == (EVENTS if whole else EVENTS[:2])
        journal = Journal(path)
        journal.append({"kind": "after"})
        journal.close()
        assert read(path) == [*kept, {"kind": "after"}]


def test_zero_filled_tail_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written(path) + b"\x00" * 40)
    assert read(path) == EVENTS


def test_every_flipped_bit_before_the_last_record_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    content = written(path)
    end = content[:-1].rindex(b"\n") + 1
    for position in range(end):
        for bit in (0, 3, 6):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(DataIntegrityError, match="is damaged"):
                Journal(path)


def test_missing_or_swapped_records_are_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path).splitlines(keepends=True)
    for order in ([1, 0, 2], [0, 2], [1, 2], [0, 0, 1]):
        path.write_bytes(b"".join(lines[i] for i in order))
        with pytest.raises(DataIntegrityError, match="is damaged"):
            Journal(path)


def test_second_owner_is_kept_out_until_the_first_leaves(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    with pytest.raises(RunTaken, match="Another process owns"):
        Journal(path, lock_timeout_s=0.1)
    first.close()
    first.close()
    Journal(path, lock_timeout_s=0.1).close()


def _append_until_killed(path: str, acknowledged: multiprocessing.connection.Connection) -> None:  # type: ignore[name-defined]
    journal = Journal(path)
    for number in range(100_000):
        journal.append({"number": number, "filling": "x" * 500})
        acknowledged.send_bytes(str(number).encode())


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for trial in range(8):
        path = tmp_path / f"{trial}.jsonl"
        reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=_append_until_killed, args=(str(path), writer))
        child.start()
        writer.close()
        last = -1
        for _ in range(5 + 7 * trial):
            last = int(reader.recv_bytes())
        child.kill()
        child.join()
        while reader.poll():
            try:
                last = int(reader.recv_bytes())
            except EOFError:
                break
        numbers = [event["number"] for event in read(path)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > last


def test_the_lock_may_be_held_for_each_record_only(tmp_path: Path) -> None:
    """A stopped process then keeps nobody out, and is refused when it comes back."""
    path = tmp_path / "journal.jsonl"
    old = Journal(path, hold=False)
    old.append({"kind": "old"})
    new = Journal(path, lock_timeout_s=0.1, hold=False)
    new.append({"kind": "new"})
    with pytest.raises(RunTaken, match="superseded"):
        old.append({"kind": "old"})
    assert read(path) == [{"kind": "old"}, {"kind": "new"}]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lock is granted, as on a network filesystem that does not honour them."""
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)


def test_superseded_journal_refuses_to_write_where_locks_are_not_honoured(no_locks: None, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    old, new = Journal(path), Journal(path)
    new.append({"kind": "new"})
    for _ in range(2):
        with pytest.raises(RunTaken, match="superseded"):
            old.append({"kind": "old"})
    new.append({"kind": "newer"})
    assert read(path) == [*EVENTS, {"kind": "new"}, {"kind": "newer"}]
    assert old.events == EVENTS


@pytest.mark.parametrize("replacement", [None, b""])
def test_removed_or_replaced_journal_is_not_written_to(tmp_path: Path, replacement: bytes | None) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    path.unlink()
    if replacement is not None:
        path.write_bytes(replacement)
    with pytest.raises(RunTaken, match="superseded"):
        journal.append(EVENTS[0])


def test_filesystem_without_locks_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert written(tmp_path / "journal.jsonl")
