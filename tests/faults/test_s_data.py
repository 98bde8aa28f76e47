"""Hostile DICOM files, shards, tables and compressed buffers: refused, bounded, and nobody's name gets out."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_shards import build as build_module
from data_shards.build import REJECTED_NAME, build
from data_shards.decode import Unreadable
from data_shards.errors import UserError
from data_shards.info import info, render_info
from data_shards.manifest import MANIFEST_NAME, ShardEntry, read_manifest, to_json
from data_shards.reader import open_shards
from data_shards.sandbox import Reply, Sandbox
from data_shards.schema import shard_schema
from data_shards.shard_file import ShardFile
from data_shards.sources import dicom
from data_shards.verify import verify
from tests.faults.fuzz_cases import damaged
from tests.faults.memory import grown_mb
from tests.faults.odd_images import encoded, mutated, picture, zeros
from tests.faults.test_x_files import changed

pydicom = pytest.importorskip("pydicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian  # noqa: E402

OPTIONS = {"validation": 0, "test": 0}
NAME, DATE, NUMBER = "Winterbottom^Ermintrude", "19370428", "MRN-0815-4711"
REAL = ("CT_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPEG2000.dcm", "examples_palette.dcm",
        "SC_rgb_jpeg_dcmtk.dcm", "examples_rgb_color.dcm", "image_dfl.dcm", "rtplan.dcm", "DICOMDIR")  # fmt: skip


def write_scan(path: Path, **elements: Any) -> Path:
    """Write a scan of a person, with everything in it that must not get out."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    scan = pydicom.Dataset()
    scan.file_meta = meta
    scan.PatientName, scan.PatientID, scan.PatientBirthDate, scan.AccessionNumber = NAME, NUMBER, DATE, NUMBER
    scan.StudyDescription, scan.InstitutionName, scan.OperatorsName = f"of {NAME}", NAME, NAME
    scan.Rows, scan.Columns, scan.SamplesPerPixel, scan.PhotometricInterpretation = 16, 16, 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 8, 8, 7, 0
    scan.PixelData = np.random.default_rng(0).integers(0, 256, 256, dtype=np.uint8).tobytes()
    scan.add_new(0x00091010, "LO", NAME)
    for name, value in elements.items():
        setattr(scan, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    scan.save_as(path, enforce_file_format=True)
    return path


def everything(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def test_s11_nothing_of_a_patient_gets_out(
    record: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    scans, dest = tmp_path / "set" / "x", tmp_path / "dest"
    for number in range(6):
        write_scan(scans / f"{number}.dcm", PatientID=f"{NUMBER}{number // 2}", PatientName=f"{NAME}{number}")
    with pydicom.config.disable_value_validation():
        write_scan(scans / "kind.dcm", PhotometricInterpretation=NAME.upper())
        write_scan(scans / "frames.dcm", NumberOfFrames="1\\2")
        write_scan(scans / "slope.dcm", RescaleSlope="1", RescaleIntercept="0", WindowCenter="1", WindowWidth="0.5")
        write_scan(scans / "short.dcm", Rows=400)
    for name in ("kind", "frames", "short"):
        text = (scans / f"{name}.dcm").read_bytes()
        (scans / f"{name}_broken.dcm").write_bytes(text.replace(b"PN", b"US", 1).replace(b"DA", b"FD", 1))
    preamble = (scans / "0.dcm").read_bytes()
    (scans / "preamble.dcm").write_bytes(NAME.encode().ljust(128, b"#") + preamble[128:])
    manifest = build(f"dicom:{tmp_path / 'set'}", dest, options=OPTIONS)
    groups = open_shards(dest).split("train").groups
    assert manifest.num_rows("train") >= 7
    assert set(groups.tolist()) >= {"patient-00000", "patient-00001", "patient-00002"}
    with open(dest / REJECTED_NAME, newline="") as stream:
        assert {row["path"] for row in csv.DictReader(stream)} >= {"x/kind.dcm", "x/short.dcm"}
    said = caplog.text + "".join(capfd.readouterr())
    hashed = hashlib.blake2b(f"{NUMBER}0".encode(), digest_size=8).hexdigest()
    for secret in (NAME, NAME.upper(), NAME.split("^")[0], NUMBER, DATE, hashed):
        assert secret not in said
        for path, data in everything(dest):
            assert secret.encode() not in data, path
    record("S11", "names, dates and ids in scans, good and broken", files=len(list(scans.iterdir())), leaked=0)


def test_s11_hostile_dicom(record: Any, tmp_path: Path) -> None:
    scans, dest = tmp_path / "set" / "x", tmp_path / "dest"
    write_scan(scans / "good.dcm")
    write_scan(scans / "deflated.dcm", syntax=DeflatedExplicitVRLittleEndian)
    bomb = (scans / "deflated.dcm").read_bytes()
    (scans / "deflated_bomb.dcm").write_bytes(bomb[:400] + zeros(1 << 30)[2:])
    write_scan(scans / "pixels.dcm", Rows=65535, Columns=65535)
    write_scan(scans / "frames.dcm", NumberOfFrames=2**31 - 1)
    write_scan(scans / "volume.dcm", Rows=8000, Columns=8000, NumberOfFrames=9999, BitsAllocated=16)
    write_scan(scans / "bits.dcm", BitsAllocated=65528)
    write_scan(scans / "empty.dcm", Rows=0)
    write_scan(scans / "link_target.dcm").rename(tmp_path / "outside.dcm")
    (scans / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    os.mkfifo(scans / "pipe.dcm")
    (scans / "huge.dcm").touch()
    os.truncate(scans / "huge.dcm", 600 << 20)
    shutil.copy(get_testdata_file("DICOMDIR"), scans / "index.dcm")
    shutil.copy(get_testdata_file("DICOMDIR"), scans / "DICOMDIR")
    expected = {path.name for path in scans.iterdir()} - {"good.dcm", "DICOMDIR"}
    more = grown_mb(lambda: build(f"dicom:{tmp_path / 'set'}", dest, options={**OPTIONS, "frames": "all"}))
    with open(dest / REJECTED_NAME, newline="") as stream:
        reasons = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(stream)}
    assert set(reasons) == expected
    assert more < 100
    assert "out of the source folder" in reasons["link.dcm"] and "plain file" in reasons["pipe.dcm"]
    record("S11", "huge, deflated, linked, piped, DICOMDIR", cases=len(reasons), refused=len(reasons), parent_mb=more)


@pytest.mark.parametrize("tries", [200, pytest.param(10_000, marks=pytest.mark.matrix)])
def test_s11_fuzzed_dicom(tries: int, record: Any, tmp_path: Path) -> None:
    found = [get_testdata_file(name, download=False) for name in REAL]
    files = [Path(name).read_bytes() for name in found if name]
    files = [data for data in files if len(data) < 300_000] + [write_scan(tmp_path / "s.dcm").read_bytes()]
    chunk, refused, died = 200, 0, 0

    def step(number: int) -> Reply:
        path = tmp_path / str(number % chunk)
        facts = dicom._silent(lambda: dicom._read_facts(path, "all"))
        return {"shape": dicom._load(path, facts.num_frames - 1, "auto", 3).shape}, b""

    with Sandbox(step, 2) as sandbox:
        for start in range(0, tries, chunk):
            numbers = range(start, min(tries, start + chunk))
            for number in numbers:
                (tmp_path / str(number % chunk)).write_bytes(mutated(files[number % len(files)], "dicom", number))
            reasons = [str(one) for one in sandbox.run(numbers) if isinstance(one, Unreadable)]
            refused += len(reasons)
            died += sum("decoder died" in text or "more than" in text for text in reasons)
    assert tries // 10 < refused <= tries
    record("S11", "fuzzed DICOM files", kinds=len(files), trials=tries, refused=refused, decoders_died=died, crashes=0)


# ---- shards and their manifests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("fuzz") / "shards"
    build("phantoms", dest, stored="png", options={"num_samples": 12, "pixels": 16})
    return dest


def use(folder: Path) -> None:
    """Do with a shard folder all that is done with one."""
    opened = open_shards(folder)
    render_info(info(folder))
    verify(folder)
    for name in opened.manifest.splits:
        reader = opened.split(name)
        for row in range(len(reader)):
            reader.image(row), reader.mask(row), reader.path(row)


@pytest.mark.parametrize("tries", [300, pytest.param(10_000, marks=pytest.mark.matrix)])
def test_x2_shard_manifests(tries: int, shards: Path, tmp_path: Path, record: Any) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    text = (folder / MANIFEST_NAME).read_text()
    refused, forgeries, uncaught = 0, 0, []
    for number in range(tries):
        rng = random.Random(f"manifest:{number}")
        spoilt = damaged(text.encode(), rng)
        if rng.random() < 0.6:
            tree = json.loads(text)
            tree.pop("sha256")
            try:
                tree = changed(tree, rng)
                canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
                signed = {**tree, "sha256": hashlib.sha256(canonical).hexdigest()}
                spoilt = json.dumps(signed).encode()
                forgeries += 1
            except (ValueError, TypeError):
                pass
        (folder / MANIFEST_NAME).write_bytes(spoilt)
        try:
            use(folder)
        except UserError as error:
            refused += 1
            assert error.exit_code in (2, 3) and str(error).isprintable()
        except Exception as error:
            uncaught.append(f"{number}: {type(error).__name__}: {error!s:.200}")
    assert uncaught == []
    assert forgeries < tries and refused > tries // 2
    record(
        "X2", "shard manifests, damaged or signed again", trials=tries, forged=forgeries, refused=refused, uncaught=0
    )


@pytest.mark.parametrize("tries", [300, pytest.param(10_000, marks=pytest.mark.matrix)])
def test_x2_shard_files_that_the_manifest_vouches_for(tries: int, shards: Path, tmp_path: Path, record: Any) -> None:
    """Arrow files with any damage and a manifest that says they are right; read in a sandbox, whatever may come."""
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    manifest = read_manifest(folder)
    entry = next(entry for entry in manifest.shards if entry.split == "train")
    data = (folder / entry.file).read_bytes()

    def step(number: int) -> Reply:
        try:
            use(tmp_path / str(number))
        except UserError as error:
            return {"code": error.exit_code}, b""
        return {"code": 0}, b""

    outcomes = []
    with Sandbox(step, 2) as sandbox:
        for start in range(0, tries, 100):
            numbers = range(start, min(tries, start + 100))
            for number in numbers:
                forge(folder, tmp_path / str(number), entry, mutated(data, "arrow", number))
            outcomes += list(sandbox.run(numbers))
            for number in numbers:
                shutil.rmtree(tmp_path / str(number))
    uncaught = [str(one) for one in outcomes if isinstance(one, Unreadable)]
    assert uncaught == []
    codes = [one[0]["code"] for one in outcomes]
    assert set(codes) <= {0, 2, 3} and codes.count(3) > tries // 3
    record("X2", "shard files damaged and vouched for", trials=tries, refused=codes.count(3), uncaught=0, crashes=0)


def forge(folder: Path, dest: Path, entry: ShardEntry, data: bytes) -> None:
    """Make a shard folder whose one training shard is `data`, and whose manifest says so."""
    dest.mkdir()
    (dest / entry.file).write_bytes(data)
    manifest = read_manifest(folder)
    signed = replace(entry, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    counts = {"train": manifest.counts["train"]}
    (dest / MANIFEST_NAME).write_text(to_json(replace(manifest, shards=(signed,), counts=counts)))


# ---- bombs and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_s9_compressed_arrow_buffers(codec: str, shards: Path, tmp_path: Path, record: Any) -> None:
    """A shard of a few MB that says it holds a gigabyte of zeros: refused before anything is unpacked."""
    entry = next(entry for entry in read_manifest(shards).shards if entry.split == "train")
    schema = shard_schema(read_manifest(shards).factors)
    big = {"image": pa.array([bytes(1 << 30)], pa.binary())}
    zero = {"int64": 0, "int32": 0, "uint32": 0, "string": "", "float": 0.0, "binary": b""}
    arrays = [big.get(column.name, pa.array([zero[str(column.type)]], column.type)) for column in schema]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    data = sink.getvalue().to_pybytes()
    forge(shards, tmp_path / "forged", replace(entry, rows=1), data)

    def step(_: int) -> Reply:
        def refused() -> None:
            with pytest.raises(UserError, match="compressed"):
                ShardFile(tmp_path / "forged" / entry.file, read_manifest(shards).factors)

        unpacked = grown_mb(lambda: pa.ipc.open_file(data).get_batch(0))  # what would have happened
        return {"mb": grown_mb(refused), "unpacked_mb": unpacked}, b""

    with Sandbox(step) as sandbox:
        (found,) = sandbox.run([0])
    assert not isinstance(found, Unreadable), found
    assert found[0]["mb"] < 100 < 900 < found[0]["unpacked_mb"]
    record("S9", f"Arrow buffer of 1 GiB in {len(data) >> 10} KB of {codec}", more_mb=found[0]["mb"], rc=3)


def test_s9_compressed_images_and_archives(tmp_path: Path, record: Any) -> None:
    """Compressed files are not unpacked, whatever they are called; PNG, JPEG and BMP are all that is decoded."""
    (tmp_path / "set" / "x").mkdir(parents=True)
    bombs = {
        "gzip.png": gzip.compress(bytes(50 << 20)),
        "zip.png": b"PK\3\4" + zeros(1 << 20),
        "jp2.png": encoded(picture(), "JPEG2000"),
    }
    for name, data in {**bombs, "good.png": encoded(picture(), "PNG")}.items():
        (tmp_path / "set" / "x" / name).write_bytes(data)
    more = grown_mb(lambda: build(f"folder:{tmp_path / 'set'}", tmp_path / "dest", options=OPTIONS))
    assert read_manifest(tmp_path / "dest").rejected == len(bombs)
    assert more < 60
    record("S9", "gzip, zip and JPEG 2000 called PNG", cases=len(bombs), parent_mb=more, rc=0)


def test_s10_paths_of_sources(tmp_path: Path, record: Any) -> None:
    folder, outside = tmp_path / "set", tmp_path / "outside.png"
    folder.mkdir()
    outside.write_bytes(encoded(picture(), "PNG"))
    (folder / "good.png").write_bytes(outside.read_bytes())
    (folder / "link.png").symlink_to(outside)
    (folder / "folder").symlink_to(tmp_path)
    refused = 0
    for name in (
        "../outside.png",
        str(outside),
        "a/../../outside.png",
        "C:\\x.png",
        "\\\\host\\x",
        "x\0.png",
        "x" * 5000,
    ):
        (folder / "labels.csv").write_text(f'path,label\ngood.png,a\n"{name}",a\n')
        with pytest.raises(UserError, match=r"must be relative|CSV"):
            build(f"table:{folder / 'labels.csv'}", tmp_path / "dest", options=OPTIONS)
        refused += 1
    rows = "path,label,mask\ngood.png,a,\nlink.png,a,\nfolder/outside.png,a,\n./good.png,a,link.png\n"
    for source in ("table", "dicom"):
        (folder / "labels.csv").write_text(rows if source == "table" else rows.replace(",mask", ",note"))
        try:
            build(f"{source}:{folder / 'labels.csv'}", tmp_path / source, options=OPTIONS)
            kept = open_shards(tmp_path / source).split("train")
            assert [kept.path(row) for row in range(len(kept))] == ["good.png"]
            refused += 3
        except UserError as error:  # no DICOM file at all
            assert source == "dicom" and "not a DICOM file" in str(error)
    assert not build_module.os.path.lexists(tmp_path / "dest")
    record("S10", "paths and links of tables and folders that lead out", tries=refused, followed=0)
