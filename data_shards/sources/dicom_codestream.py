"""Size of a compressed image as its own code stream states it (JPEG, JPEG-LS: SOF; JPEG 2000: SIZ).

A decoder allocates what the code stream says, not what the DICOM header says; the header alone could be a lie.
"""

from __future__ import annotations

import struct

_SOI, _SOC_SIZ = b"\xff\xd8", b"\xff\x4f\xff\x51"
# start of frame: SOF0..SOF15 without DHT (C4), JPG (C8), DAC (CC); F7 is JPEG-LS
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xDA)}


def stated_size(stream: bytes) -> tuple[int, int, int] | None:
    """Return (height, width, samples) that a code stream states, or None for what is not one of these."""
    if stream.startswith(_SOI):
        return _jpeg_size(stream)
    if stream.startswith(_SOC_SIZ) and len(stream) >= 42:
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left, struct.unpack(">H", stream[40:42])[0]
    return None


def _jpeg_size(stream: bytes) -> tuple[int, int, int] | None:
    position = 2
    while position + 10 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF or marker in _ALONE:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            height, width, samples = struct.unpack(">2HB", stream[position + 5 : position + 10])
            return height, width, samples
        position += 2 + int(struct.unpack(">H", stream[position + 2 : position + 4])[0])
    return None
