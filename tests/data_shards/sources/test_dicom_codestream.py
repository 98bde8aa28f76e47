from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build import REJECTED_NAME, build
from data_shards.errors import UserError
from data_shards.sources.dicom_codestream import stated_size

pydicom = pytest.importorskip("pydicom")

from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.encaps import encapsulate, get_frame  # noqa: E402


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "examples_ybr_color.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_real_streams_state_the_size_of_their_header(name: str) -> None:
    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    stream = get_frame(dataset.PixelData, 0, number_of_frames=int(dataset.get("NumberOfFrames", 1)))
    assert stated_size(stream) == (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + b"x" * 100}])
def test_jpeg_of_any_kind(mode: str, options: dict) -> None:
    data = io.BytesIO()
    Image.new(mode, (31, 17)).save(data, "JPEG", **options)
    assert stated_size(data.getvalue()) == (17, 31, len(mode))


@pytest.mark.parametrize(
    "stream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda" + b"\0" * 20, b"\xff\x4f\xff\x51", b"RIFF" * 30]
)
def test_what_states_no_size(stream: bytes) -> None:
    assert stated_size(stream) is None


def test_random_streams_never_fail() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        body = rng.integers(0, 256, rng.integers(0, 60), dtype=np.uint8).tobytes()
        for start in (b"\xff\xd8\xff", b"\xff\x4f\xff\x51"):
            found = stated_size(start + body)
            assert found is None or len(found) == 3


def test_a_stream_larger_than_its_header_is_not_decoded(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm", download=False))
    stream = bytearray(get_frame(dataset.PixelData, 0))
    size = struct.pack(">2H", 100, 100)
    stream[stream.index(size) : stream.index(size) + 4] = struct.pack(">2H", 60000, 60000)
    dataset.PixelData = encapsulate([bytes(stream)])
    (tmp_path / "set" / "x").mkdir(parents=True)
    dataset.save_as(tmp_path / "set" / "x" / "bomb.dcm")
    with pytest.raises(UserError, match="60000, 60000, 3"):
        build(f"dicom:{tmp_path / 'set'}", tmp_path / "dest", strict=True)
    assert not (tmp_path / "dest" / REJECTED_NAME).exists()
