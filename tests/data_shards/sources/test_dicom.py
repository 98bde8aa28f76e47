from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data_shards.build import REJECTED_NAME, build
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources.dicom import read
from data_shards.sources.dicom_pixels import windowed

pydicom = pytest.importorskip("pydicom")

from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_windowing  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage  # noqa: E402


def write_dicom(path: Path, pixels: np.ndarray, kind: str = "MONOCHROME2", **elements: object) -> Path:
    """Write a minimal uncompressed DICOM file; `pixels` is (H, W), (F, H, W) or (H, W, 3)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    colour = pixels.ndim == 3 and kind in ("RGB",)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = kind
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def one_image(tmp_path: Path, **options: object) -> np.ndarray:
    """Build the one file in tmp_path/set/x and return its pixels as they are stored."""
    build(f"dicom:{tmp_path / 'set'}", tmp_path / "dest", stored="raw", options={"validation": 0, "test": 0, **options})
    return open_shards(tmp_path / "dest").split("train").image(0)


def reasons(dest: Path) -> dict[str, str]:
    with open(dest / REJECTED_NAME, newline="") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


RAMP = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1024), (0.5, 10)])
@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_modality_lut_and_window_of_the_file(tmp_path: Path, slope: float, intercept: float, kind: str) -> None:
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": [40, 7], "WindowWidth": [400, 1]}
    write_dicom(tmp_path / "set" / "x" / "a.dcm", RAMP, kind, **elements)
    image = one_image(tmp_path)[..., 0]
    for (row, column), raw in np.ndenumerate(RAMP):  # PS3.3 C.11.2.1.2, value by value
        value = raw * slope + intercept
        if value <= 40 - 0.5 - 399 / 2:
            shade = 0.0
        elif value > 40 - 0.5 + 399 / 2:
            shade = 255.0
        else:
            shade = ((value - 39.5) / 399 + 0.5) * 255
        shade = 255 - shade if kind == "MONOCHROME1" else shade
        assert abs(image[row, column] - shade) <= 0.501


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_agree_with_pydicom(function: str) -> None:
    dataset = Dataset()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 100, 333, function
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 12, 0
    values = np.arange(4096, dtype=np.uint16)
    expected = apply_windowing(values, dataset) / 4095
    assert np.abs(windowed(values.astype(float), 100, 333, function) - expected).max() < 1e-3


def test_windows_by_option(tmp_path: Path) -> None:
    write_dicom(tmp_path / "set" / "x" / "a.dcm", RAMP)
    given = one_image(tmp_path, window="0/100")[..., 0]
    assert given[RAMP < -60].max() == 0
    assert given[RAMP > 60].min() == 255
    shutil.rmtree(tmp_path / "dest")
    spread = one_image(tmp_path)[..., 0]
    assert abs(spread.mean() - 127.5) < 2
    assert (spread == 0).mean() == pytest.approx(0.005, abs=0.003)
    with pytest.raises(UserError, match="the file has no window"):
        build(f"dicom:{tmp_path / 'set'}", tmp_path / "other", strict=True, options={"window": "file"})
    for wrong in ("bone", "40", "40/0", "x/y"):
        with pytest.raises(UserError, match="CENTER/WIDTH"):
            read(tmp_path / "set", window=wrong)


def test_padding_does_not_bend_the_percentiles(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(100, 200, (30, 30)).astype(np.int16)
    pixels[:, :15] = -2000
    write_dicom(tmp_path / "set" / "x" / "a.dcm", pixels, PixelPaddingValue=-2000)
    image = one_image(tmp_path)[..., 0]
    assert image[:, 15:].std() > 50
    assert not image[:, :15].any()


def test_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    write_dicom(tmp_path / "set" / "x" / "a.dcm", pixels, "RGB")
    assert np.array_equal(one_image(tmp_path), pixels)


def test_frames(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 9), dtype=np.uint8)
    write_dicom(tmp_path / "set" / "x" / "many.dcm", pixels, WindowCenter=128, WindowWidth=256)
    write_dicom(tmp_path / "set" / "x" / "one.dcm", pixels[0])
    options = {"validation": 0, "test": 0}
    build(f"dicom:{tmp_path / 'set'}", tmp_path / "first", options=options)
    assert reasons(tmp_path / "first") == {"x/many.dcm": "3 frames; use frames=all to take each as an image"}
    build(f"dicom:{tmp_path / 'set'}", tmp_path / "all", options=options | {"frames": "all"})
    reader = open_shards(tmp_path / "all").split("train")
    assert [reader.path(row) for row in range(4)] == [*(f"x/many.dcm#{i}" for i in range(3)), "x/one.dcm"]
    assert reader.groups.tolist() == ["x/many.dcm"] * 3 + [""]
    gap = reader.images(range(3))[..., 0].astype(int) - pixels
    assert np.abs(gap).max() <= 1


def test_patients_are_groups_without_their_names(tmp_path: Path) -> None:
    for number in range(20):
        write_dicom(tmp_path / "x" / f"{number}", np.full((4, 4), number, np.uint8), PatientID=f"Doe^{number // 4}")
    listing = read(tmp_path)
    assert len({record.group for record in listing.records}) == 5
    assert not any("Doe" in record.group for record in listing.records)
    assert len({(record.group, record.split) for record in listing.records}) == 5
    assert {record.group for record in read(tmp_path, group="none").records} == {""}


def test_what_is_rejected_and_why(tmp_path: Path) -> None:
    folder, pixels = tmp_path / "set" / "x", np.zeros((4, 4), np.uint8)
    write_dicom(folder / "good.dcm", np.arange(16, dtype=np.uint8).reshape(4, 4))
    write_dicom(folder / "deflated.dcm", pixels, syntax=DeflatedExplicitVRLittleEndian)
    write_dicom(folder / "huge.dcm", pixels, Rows=60000, Columns=60000)
    write_dicom(folder / "frames.dcm", pixels, NumberOfFrames=10**8)
    write_dicom(folder / "large.dcm", pixels, Rows=4000, Columns=4000, NumberOfFrames=1000)
    write_dicom(folder / "kind.dcm", pixels, "HSV")
    write_dicom(folder / "short.dcm", pixels, Rows=40)
    write_dicom(folder / "nan.dcm", pixels, RescaleSlope="1e308", RescaleIntercept="-1e308")
    (folder / "text.dcm").write_text("hello")
    (folder / "DICOMDIR").write_bytes(Path(get_testdata_file("DICOMDIR")).read_bytes())
    (folder / "index").write_bytes(Path(get_testdata_file("DICOMDIR")).read_bytes())
    build(f"dicom:{tmp_path / 'set'}", tmp_path / "dest", options={"validation": 0, "test": 0})
    found = reasons(tmp_path / "dest")
    for name, text in {
        "deflated.dcm": "deflated transfer syntax",
        "huge.dcm": "60000 x 60000 pixels is above",
        "frames.dcm": "above the limit of 10000",
        "large.dcm": "above the limit of 1 GiB",
        "kind.dcm": "'HSV' is not supported",
        "short.dcm": "cannot be decoded",
        "text.dcm": "not a DICOM file",
        "index": "a DICOMDIR",
    }.items():
        assert text in found.pop(f"x/{name}")
    assert set(found) <= {"x/nan.dcm"}


REAL = {
    "CT_small.dcm": 1,
    "MR_small_RLE.dcm": 1,
    "MR_small_jp2klossless.dcm": 1,
    "JPEG2000.dcm": 1,
    "examples_palette.dcm": 3,
    "examples_rgb_color.dcm": 3,
    "examples_ybr_color.dcm": 3,
    "SC_rgb_jpeg_dcmtk.dcm": 3,
}


def test_real_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "set" / "x").mkdir(parents=True)
    for name in REAL:
        shutil.copy(get_testdata_file(name, download=False), tmp_path / "set" / "x" / name)
    broken = "JPEG-lossy.dcm"  # known to carry a wrong marker segment
    shutil.copy(get_testdata_file(broken, download=False), tmp_path / "set" / "x" / broken)
    options = {"validation": 0, "test": 0, "frames": "all"}
    manifest = build(f"dicom:{tmp_path / 'set'}", tmp_path / "dest", size=64, options=options)
    assert manifest.channels == 3
    (reason,) = reasons(tmp_path / "dest").values()
    assert "compressed pixels (JPEG Extended" in reason
    reader = open_shards(tmp_path / "dest").split("train")
    for row in range(len(reader)):
        image = reader.image(row)
        assert image.std() > 10, reader.path(row)
        if REAL[reader.path(row).split("/")[1].split("#")[0]] == 1:
            assert np.array_equal(image[..., 0], image[..., 1])
    lossless = reader.images([row for row in range(len(reader)) if "MR_small" in reader.path(row)])
    assert np.array_equal(lossless[0], lossless[1])  # two compressions of one scan


def test_a_table_of_dicom_files(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "1.dcm", RAMP, PatientID="p")
    write_dicom(tmp_path / "a" / "2.dcm", RAMP, PatientID="q")
    (tmp_path / "t.csv").write_text("path,label,split,group\na/1.dcm,u,train,g1\na/2.dcm,v,test,g2\n")
    listing = read(tmp_path / "t.csv", group="group", validation=0)
    assert [(r.label, r.split, r.group) for r in listing.records] == [("u", "train", "g1"), ("v", "test", "g2")]
    assert build(f"dicom:{tmp_path / 't.csv'}", tmp_path / "dest", size=16).rejected == 0


def test_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'subspace-trainer\[dicom\]'"):
        read(tmp_path)
