"""Image files that somebody hands over in memory -> uint8 arrays, decoded in a confined process that lives on.

The bytes are in an anonymous file in memory (memfd) which the decoding process opens through /proc, so that no upload
is ever on a disk, nor left behind by whatever dies. JPEG, PNG, BMP and single-frame DICOM (extra [dicom]), told by
content.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from data_shards.decode import UInt8Array, Unreadable, load_image, read_bytes
from data_shards.errors import UserError
from data_shards.sandbox import Limits, Reply, Sandbox
from data_shards.sources.listing import Record

_DICOM_MARK = slice(128, 132)


def is_dicom(data: bytes) -> bool:
    """Tell by the mark behind the preamble."""
    return data[_DICOM_MARK] == b"DICM"


class Decoder:
    """Decodes files to C = `channels`; use it in a `with`, from one thread at a time.

    The process is forked on entering: do that before there are threads and a GPU.
    """

    def __init__(self, channels: int, limits: Limits | None = None) -> None:
        self._channels = channels
        self._parent = os.getpid()
        self._sandbox = Sandbox(self._decode, limits=limits)

    def __enter__(self) -> Decoder:
        self._sandbox.__enter__()
        self.decode([b""])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sandbox.__exit__(kind, error, trace)

    def decode(self, files: Sequence[bytes]) -> list[UInt8Array | Unreadable]:
        """Return (H, W, C) uint8 of every file, or why it cannot be used."""
        return [self._one(data) for data in files]

    def _one(self, data: bytes) -> UInt8Array | Unreadable:
        descriptor = os.memfd_create("upload")
        try:
            with open(descriptor, "wb", closefd=False) as stream:
                stream.write(data)
            (answer,) = self._sandbox.run([descriptor])
        finally:
            os.close(descriptor)
        if isinstance(answer, Unreadable):
            return answer
        facts, pixels = answer
        return np.frombuffer(pixels, dtype=np.uint8).reshape(facts["shape"])

    def _decode(self, descriptor: int) -> Reply:
        """Run in the confined process; `descriptor` is one of the parent's."""
        path = Path(f"/proc/{self._parent}/fd/{descriptor}")
        data = read_bytes(path)
        image = _dicom(path, self._channels) if is_dicom(data) else load_image(data, self._channels)
        return {"shape": image.shape}, image.tobytes()


def _dicom(path: Path, channels: int) -> UInt8Array:
    from data_shards.sources.dicom import single_frame

    try:
        record = single_frame(Record("upload", "", "", file=path))
    except UserError as error:
        raise Unreadable(str(error)) from None
    assert record.header is not None and record.load is not None
    record.header()
    return record.load(channels)
