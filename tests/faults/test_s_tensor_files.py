"""S8: safetensors that lie. Each is refused for what it claims, without the memory or the time that it claims."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_shards.errors import DataIntegrityError
from tests.faults.conftest import Recorder
from trainer.tensor_file import MAX_HEADER_BYTES, read_tensors


def entry(i: int, side: int = 1) -> str:
    return f'"{i:x}":{{"dtype":"U8","shape":[{side}],"data_offsets":[{i},{i + side}]}}'


def entries(count: int) -> Iterator[bytes]:
    yield b"{"
    for i in range(count):
        yield (("," if i else "") + entry(i)).encode()
    yield b"}"


def header_of_100_mb() -> tuple[bytes, bytes]:
    return b'{"a":"' + b"x" * (100 << 20) + b'"}', b""


def a_million_entries() -> tuple[bytes, bytes]:
    return b"".join(entries(1_000_000)), bytes(1_000_000)


def many_entries_in_an_allowed_header() -> tuple[bytes, bytes]:
    return b"".join(entries(250_000)), bytes(250_000)


def many_small_objects() -> tuple[bytes, bytes]:
    return b'{"a":[' + b"{}," * 5_000_000 + b"{}]}", b""


def many_lists() -> tuple[bytes, bytes]:
    return b'{"a":[' + b"[]," * 5_000_000 + b"[]]}", b""


def many_keys() -> tuple[bytes, bytes]:
    return b"{" + b",".join(b'"%x":9' % i for i in range(1_500_000)) + b"}", b""


def many_numbers() -> tuple[bytes, bytes]:
    return b'{"a":[' + b"300," * 3_900_000 + b"1]}", b""


def overlapping_offsets() -> tuple[bytes, bytes]:
    return json.dumps(
        {n: {"dtype": "F64", "shape": [1 << 17], "data_offsets": [0, 1 << 20]} for n in "abc"}
    ).encode(), (bytes(1 << 20))


def shape_overflow() -> tuple[bytes, bytes]:
    return json.dumps({"a": {"dtype": "F32", "shape": [1 << 31, 1 << 31, 4], "data_offsets": [0, 0]}}).encode(), b""


def terabytes() -> tuple[bytes, bytes]:
    return json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode(), b"1234"


HOSTILE = (header_of_100_mb, a_million_entries, many_entries_in_an_allowed_header, many_small_objects, many_lists,
           many_keys, many_numbers, overlapping_offsets, shape_overflow, terabytes)  # fmt: skip


def refused(path: Path) -> tuple[float, int]:
    """Return seconds of CPU and growth of the peak in bytes, which a child measures from a low start."""

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before, start = _resident(), time.process_time()
        try:
            read_tensors(path)
            said = b"read"
        except DataIntegrityError:
            said = json.dumps([time.process_time() - start, _peak() - before]).encode()
        os.write(writer, said)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        seconds, grown = json.loads(answer.read())
    os.waitpid(child, 0)
    return seconds, grown


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _resident() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_s8_hostile_safetensors(make: Callable[[], tuple[bytes, bytes]], tmp_path: Path, record: Recorder) -> None:
    header, data = make()
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    size = len(header)
    del header, data
    seconds, grown = refused(path)
    assert seconds < 2
    assert grown < 300 << 20
    within = "within" if size <= MAX_HEADER_BYTES else "beyond"
    record("S8", f"{make.__name__.replace('_', ' ')} ({within} the limit of a header)", detected_s=seconds,
           rss_growth_mb=grown >> 20, rc=3)  # fmt: skip
