"""Kimia Path24: the released folders, and miniatures of the file of scans with whitened squares and background."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.build import build
from data_shards.decode import Unreadable
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources import read_source
from data_shards.sources.grid import Grid, ScanGrid
from data_shards.sources.kimia_path24 import CLASSES, COUNTS, read
from data_shards.sources.listing import Record
from data_shards.sources.published import differences
from data_shards.verify import verify

h5py = pytest.importorskip("h5py")

SIDE = 20  # of a test patch; 1000 in the real file


# -- the released folders


@pytest.fixture
def released(tmp_path: Path, write_image) -> Path:
    """Return KIMIAPath24_RGB with three scans."""
    root = tmp_path / "KIMIAPath24_RGB"
    for name in ("s2", "s10", "s0"):
        for number in range(20):
            write_image(root / "Training" / name / f"{number}.jpg", 30, 30)
        for number in range(4):
            write_image(root / "RGBPatches-test" / name / f"{number}.jpg", 30, 30)
    return root


def test_published_counts() -> None:
    assert (len(CLASSES), sum(test for _, test in COUNTS.values())) == (24, 1325)
    records = [Record(f"{name}/{i}", name, "test") for name, (_, test) in COUNTS.items() for i in range(test)]
    assert differences([*records, Record("x", "s3", "train")], COUNTS, "it") == []
    assert (
        "1,324 images found, it counts 1,325 in the test; different: s0 test 64"
        in differences(records[1:], COUNTS, "it")[0]
    )


@pytest.mark.parametrize("above", [False, True])
def test_the_released_folders(released: Path, above: bool) -> None:
    listing = read(released.parent if above else released)
    assert listing.classes == CLASSES and CLASSES[10] == "s10"
    assert [r.label for r in listing.records] == ["s0"] * 20 + ["s2"] * 20 + ["s10"] * 20 + [
        name for name in ("s0", "s2", "s10") for _ in range(4)
    ]
    counts = listing.counts()
    assert {split: counts[split]["s2"] for split in counts} == {"train": 18, "validation": 2, "test": 4}
    assert {record.group for record in listing.records} == {""}
    assert (
        "72 images found, the published list counts 1,325 in the test; different: s0 test 4 instead of 65"
        in (listing.warnings[0])
    )


def test_folders_by_number_and_strangers(released: Path, tmp_path: Path) -> None:
    (released / "Training" / "s2").rename(released / "Training" / "2")
    (released / "Training" / "s24").mkdir()
    (released / "RGBPatches-test" / "masks").mkdir()
    manifest = build(f"kimia_path24:{released}", tmp_path / "dest")
    assert manifest.image_size == 300
    assert manifest.counts["train"]["s2"] == 18
    assert "2 folders are not one of the 24 classes and were left out: Training/s24" in manifest.warnings[0]


def test_folders_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folders Training and RGBPatches-test"):
        read(tmp_path)
    for name in ("Training", "RGBPatches-test"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="No images under"):
        read(tmp_path)


# -- the file of scans


def tissue(seed: int, colour: bool, height: int = 7 * SIDE, width: int = 9 * SIDE) -> np.ndarray:
    """Return a scan of tissue, its last two columns of patches noisy white background."""
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if colour else (height, width)
    scan = rng.integers(60, 200, shape, dtype=np.uint8)
    scan[:, 7 * SIDE :] = rng.integers(235, 256, scan[:, 7 * SIDE :].shape)
    return scan


def miniature(path: Path, colour: bool, **storage: object) -> dict[int, np.ndarray]:
    """Write Kimia_Path24.h5 with scans 0, 3 and 20; return them. Test squares lie at (25, 30) and (80, 60)."""
    scans, patches, targets = {}, [], []
    with h5py.File(path, "w") as file:
        for number in (0, 3, 20):
            scan = scans[number] = tissue(number, colour)
            for top, left in ((25, 30), (80, 60)):
                patches.append(scan[top : top + SIDE, left : left + SIDE].copy())
                targets.append(number)
                scan[top : top + SIDE, left : left + SIDE] = 255
            file.create_dataset(f"scan{number}/data", data=scan, **storage)
            file[f"scan{number}/thumbnail"] = scan[::4, ::4]
        file["test_data/patches"] = np.stack(patches)
        file["test_data/targets"] = np.array(targets, dtype=np.float64)  # as MATLAB would
    return scans


def expected_places(patch: int, stride: int) -> list[tuple[int, int]]:
    """Return (x, y) of the patches that touch no square and reach no background, by looking at every one."""
    places = []
    for y in range(0, 7 * SIDE - patch + 1, stride):
        for x in range(0, 7 * SIDE - patch + 1, stride):
            touched = [
                abs(2 * y + patch - 2 * t - SIDE) < patch + SIDE and abs(2 * x + patch - 2 * s - SIDE) < patch + SIDE
                for t, s in ((25, 30), (80, 60))
            ]
            if not any(touched):
                places.append((x, y))
    return places


def places_of(records: tuple[Record, ...], scan: int) -> set[str]:
    return {r.path for r in records if r.path.startswith(f"scan{scan}#x") and r.split != "test"}


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(("patch", "stride"), [(SIDE, 0), (SIDE, 7), (16, 16), (30, 20)])
def test_patches_are_cut_beside_whitened_squares_and_background(
    tmp_path: Path, colour: bool, patch: int, stride: int
) -> None:
    miniature(tmp_path / "k.h5", colour, chunks=(16, 64) + (3,) * colour, compression="gzip")
    listing = read(tmp_path / "k.h5", patch=patch, stride=stride, tissue=1.0)
    wanted = {f"scan3#x={x},y={y}" for x, y in expected_places(patch, stride or patch)}
    assert places_of(listing.records, 3) == wanted
    assert [r.path for r in listing.records if r.split == "test"][2:4] == ["scan3#test=2", "scan3#test=3"]
    text = " ".join(listing.warnings)
    assert ("overlap" in text) == (0 < stride < patch)
    assert ("differ in scale" in text) == (patch != SIDE)
    assert "No whitened" not in text


def test_what_is_stored_are_the_pixels_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    scans = miniature(tmp_path / "room" / "k.h5", True)
    (tmp_path / "k.h5").symlink_to(tmp_path / "room" / "k.h5")
    source, options = f"kimia_path24:{tmp_path / 'k.h5'}", {"patch": SIDE, "validation": 0}
    manifest = build(source, tmp_path / "dest", size=SIDE, options=options, num_workers=2)
    assert (manifest.channels, manifest.rejected) == (3, 0)
    folder = open_shards(tmp_path / "dest")
    train, test = folder.split("train"), folder.split("test")
    for row in range(len(train)):
        scan, x, y = (int(part) for part in train.path(row)[4:].replace("#x=", ",").replace("y=", "").split(","))
        assert np.array_equal(train.image(row), scans[scan][y : y + SIDE, x : x + SIDE])
        assert train.classes[train.labels[row]] == f"s{scan}"
    with h5py.File(tmp_path / "k.h5") as file:
        assert np.array_equal(test.images(range(6)), file["test_data/patches"][...])
    assert [test.classes[label] for label in test.labels] == ["s0"] * 2 + ["s3"] * 2 + ["s20"] * 2
    assert verify(tmp_path / "dest") == []


def test_300_pixels_unless_asked_otherwise(tmp_path: Path) -> None:
    miniature(tmp_path / "k.h5", False)
    manifest = build(f"kimia_path24:{tmp_path / 'k.h5'}", tmp_path / "dest", options={"patch": SIDE})
    assert (manifest.image_size, manifest.channels) == (300, 1)
    assert manifest.num_rows("validation") == 3 * round(0.1 * len(expected_places(SIDE, SIDE)))


def test_scans_without_whitened_squares_are_told(tmp_path: Path) -> None:
    miniature(tmp_path / "k.h5", False)
    with h5py.File(tmp_path / "k.h5", "r+") as file:
        data = file["scan3/data"][...]
        file["scan3/data"][...] = np.minimum(data, 254)
    (warning,) = [w for w in read(tmp_path / "k.h5", patch=SIDE).warnings if "whitened" in w]
    assert warning.startswith("No whitened squares in scan3:")


def test_little_tissue_is_a_fraction_of_pixels() -> None:
    for fraction, kept in ((0.0, 4), (0.25, 3), (0.26, 2), (0.5, 2), (1.0, 1)):
        scan = np.full((16, 64), 230, np.uint8)
        scan[:, :16] = 100
        scan[:8, 16:32] = 100
        scan[:4, 32:48] = 100
        choice = ScanGrid(16, 64, Grid(16, 16, fraction), SIDE)
        choice.feed(scan)
        assert choice.kept().tolist() == [[16 * i, 0] for i in range(kept)]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), max_size=4), st.integers(0, 3))
def test_the_height_of_bands_changes_nothing(heights: list[int], seed: int) -> None:
    scan = tissue(seed, False)
    scan[25:45, 30:50] = 255
    whole, parts = (ScanGrid(*scan.shape, Grid(16, 9, 0.5), SIDE) for _ in range(2))
    whole.feed(scan)
    cuts = [0, *np.cumsum(heights).tolist(), len(scan)]
    for top, bottom in itertools.pairwise(np.minimum(cuts, len(scan)).tolist()):
        parts.feed(scan[top:bottom])
    assert np.array_equal(whole.kept(), parts.kept())


def test_a_grid_of_too_many_places() -> None:
    with pytest.raises(Unreadable, match="more than 1,048,576 patches"):
        ScanGrid(5000, 5000, Grid(16, 1, 0.5), SIDE)


# -- files that cannot be used

Break = Callable[["h5py.File"], None]


def replaced(name: str, **storage: object) -> Break:
    def spoil(file: h5py.File) -> None:
        del file[name]
        if storage:
            file.create_dataset(name, **storage)

    return spoil


def linked(name: str, link: object) -> Break:
    def spoil(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return spoil


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((40, 40), "uint8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (40, 40))
    del file["scan3/data"]
    file.create_virtual_dataset("scan3/data", layout)


WRONG: list[tuple[Break, str]] = [
    (replaced("test_data"), "has no /test_data/patches"),
    (replaced("test_data/targets"), "has no /test_data/targets"),
    (replaced("scan3/data"), "has no /scan3/data"),
    (replaced("scan3/data", data=np.zeros((40, 40), np.uint16)), "not scan of 8-bit .* but uint16 of shape"),
    (replaced("scan3/data", data=np.zeros((40, 40), np.float32)), "not an array of numbers of the expected type"),
    (replaced("scan3/data", data=np.zeros((40, 40, 4), np.uint8)), r"shape \(40, 40, 4\)"),
    (replaced("scan3/data", data=np.zeros(40, np.uint8)), r"shape \(40,\)"),
    (replaced("scan3/data", data=h5py.Empty("u1")), "not an array of numbers"),
    (replaced("scan3/data", data="text"), "not an array of numbers"),
    (replaced("scan3/data", shape=(1 << 40, 1 << 20), dtype="u1", chunks=(64, 64)), "which no scan has"),
    (replaced("scan3/data", shape=(40_000, 40_000), dtype="u1", chunks=(20_000, 20_000)), "chunks above 64 MiB"),
    (replaced("scan3/data", shape=(40, 40), dtype="u1", external=[("/etc/passwd", 0, 1600)]), "from other files"),
    (replaced("scan3/data", shape=(40, 40), dtype="u1", chunks=(8, 8), scaleoffset=4), "filter that is not accepted"),
    (virtual, "from other files"),
    (linked("scan3/data", h5py.ExternalLink("other.h5", "/x")), "/scan3/data is a link"),
    (linked("scan3", h5py.ExternalLink("other.h5", "/")), "is a link"),
    (linked("scan3", h5py.SoftLink("/scan0")), "is a link"),
    (linked("scan3", np.zeros(3)), "has no /scan3/data"),
    (replaced("test_data/patches", data=np.zeros((6, 20, 21), np.uint8)), "21 x 20 pixels make no sense"),
    (replaced("test_data/patches", data=np.zeros((5, 20, 20), np.uint8)), "6 targets for 5 test patches"),
    (replaced("test_data/targets", data=np.array([0, 3, 20, 1, 0, 0])), "a scan that the file does not have"),
    (replaced("test_data/targets", data=np.array([0, 3, 20, np.nan, 0, 0])), "a scan that the file does not have"),
    (replaced("test_data/targets", data=np.array([0, 3, 20, 0.5, 0, 0])), "a scan that the file does not have"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, spoil: Break, message: str) -> None:
    miniature(tmp_path / "k.h5", False)
    with h5py.File(tmp_path / "k.h5", "r+") as file:
        spoil(file)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "k.h5", patch=SIDE)
    assert str(caught.value).startswith(f"{tmp_path / 'k.h5'} cannot be used: ")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "no scans", "bytes"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "k.h5"
    miniature(path, False, chunks=(16, 64), compression="gzip")
    data = path.read_bytes()
    if damage == "no scans":
        h5py.File(path, "w").close()
    elif damage == "bytes":  # in the packed pixels of a scan
        with h5py.File(path) as file:
            where = file["scan3/data"].id.get_chunk_info(0).byte_offset
        path.write_bytes(data[:where] + b"\xff" * 64 + data[where + 64 :])
    else:
        path.write_bytes({"empty": b"", "text": b"hello" * 999, "cut": data[: len(data) // 2]}[damage])
    with pytest.raises(UserError, match="cannot be used"):
        read(path, patch=SIDE)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_flipped_bytes_are_a_listing_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num: int
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "k.h5"
    miniature(path, False)
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, 6000, num):  # where the structure is
        data[place] = rng.integers(256)
    path.write_bytes(data)
    try:
        assert read(path, patch=SIDE).records
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 8}, "patch=8 stride=8 make no grid"),
        ({"patch": 10**6}, "make no grid"),
        ({"stride": -1}, "stride=-1 make no grid"),
        ({"tissue": 1.5}, "tissue=1.5 is not a fraction"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, float], message: str) -> None:
    miniature(tmp_path / "k.h5", False)
    with pytest.raises(UserError, match=message):
        read_source(f"kimia_path24:{tmp_path / 'k.h5'}", options)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a plain file"):
        read(tmp_path / "pipe")


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'subspace-trainer\[wsi\]'"):
        read(tmp_path / "k.h5")
