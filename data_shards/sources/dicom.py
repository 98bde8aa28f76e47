"""dicom:PATH - DICOM files in class folders (as folder:), or a CSV table of their paths (as table:).

Header first: size, frames and transfer syntax are checked before a pixel is decoded. Gray images go through the
modality LUT (RescaleSlope, RescaleIntercept), a VOI window and, for MONOCHROME1, inversion (PS3.3 C.7.6.3, C.11.1,
C.11.2) to uint8; RGB, YBR and PALETTE COLOR become RGB.

Nothing of a header leaves the process that reads it but size, number of frames and a hash of the patient's id, by
which splits are drawn; what is stored as group is a running number, since short ids could be guessed from their hash.
Reasons in rejected.csv quote no element. The preamble is never looked at. (Paths are stored, whatever they tell.)

Legend: H, W height and width of a frame; C channels, 1 or 3.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_shards.decode import Header, UInt8Array, Unreadable, check_inside, check_size, open_image
from data_shards.errors import UserError
from data_shards.sandbox import Reply, Sandbox
from data_shards.sources.folder import list_images
from data_shards.sources.listing import Listing, Record
from data_shards.sources.splits import complete
from data_shards.sources.table import list_rows

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

T = TypeVar("T")
MAX_PIXEL_BYTES = 1 << 30
MAX_FRAMES = 10_000
_SUFFIXES = {".dcm", ".dicom", ".ima", ""}
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DICOMDIR = "1.2.840.10008.1.3.10"
# what is read of a header, and nothing else
_FACTS = "Rows Columns SamplesPerPixel BitsAllocated NumberOfFrames PhotometricInterpretation PatientID"
_PIXELS = (
    "Rows Columns SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation PlanarConfiguration "
    "NumberOfFrames PhotometricInterpretation PixelPaddingValue RescaleSlope RescaleIntercept ModalityLUTSequence "
    "WindowCenter WindowWidth VOILUTFunction VOILUTSequence RedPaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableDescriptor BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData ExtendedOffsetTable "
    "ExtendedOffsetTableLengths PixelData FloatPixelData DoubleFloatPixelData"
)
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "PALETTE COLOR")
_OTHER = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "XYB")  # the standard's; any other text may be anything


@dataclass(frozen=True)
class _Facts:
    """What the header says: `header`, or the `reason` the file cannot be used."""

    num_frames: int = 1
    patient: str = ""
    header: Header | None = None
    reason: str = ""

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> _Facts:
        return cls(**{**facts, "header": Header(**facts["header"])})

    def checked(self) -> Header:
        if self.header is None:
            raise Unreadable(self.reason)
        return self.header


def read(
    path: Path,
    *,
    window: str = "auto",
    frames: str = "reject",
    group: str = "patient",
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
) -> Listing:
    """List DICOM files.

    `window`: "file" (VOI LUT or first window of the file), "percentiles" (0.5 to 99.5), "auto" (the file's, else
    percentiles) or "CENTER/WIDTH". `frames`: "reject" multi-frame files or take "all" as images of one group. `group`:
    "patient" (hash of PatientID), "none", or what folder: and table: know. Raises UserError without pydicom.
    """
    _check_options(window, frames)
    base_group = "none" if group == "patient" else group
    if path.is_dir():
        files, root = list_images(path, _SUFFIXES, base_group), path
        files = [record for record in files if Path(record.path).name.upper() != "DICOMDIR"]
    else:
        files, root = list_rows(path, base_group), path.parent
    records, patients = [], dict[str, str]()
    for record, facts in zip(files, _all_facts(files, frames, root), strict=True):
        if group == "patient":
            patients.setdefault(facts.patient, f"patient-{len(patients):05d}" if facts.patient else "")
            record = replace(record, group=facts.patient)
        records += _frame_records(record, facts, window)
    records, notes = complete(records, validation, test, seed)
    records = [replace(record, group=patients.get(record.group, record.group)) for record in records]
    classes = tuple(sorted({record.label for record in records}))
    return Listing(root.name, classes, tuple(records), root=root, warnings=tuple(notes))


def single_frame(record: Record, window: str = "auto") -> Record:
    """Return the record of a DICOM file of one frame, whose header and pixels are read when they are asked for.

    Raises UserError without pydicom.
    """
    _check_options(window, "reject")
    file = record.file
    assert file is not None
    return replace(record, header=partial(_header, file), load=partial(_load, file, 0, window))


def _check_options(window: str, frames: str) -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise UserError("Reading DICOM needs pydicom: pip install 'subspace-trainer[dicom]'.") from None
    if frames not in ("reject", "all"):
        raise UserError(f"frames={frames} is unknown; use reject or all.")
    if window not in ("auto", "file", "percentiles"):
        _explicit(window)


def _explicit(window: str) -> tuple[float, float]:
    centre, _, width = window.partition("/")
    try:
        values = float(centre), float(width)
    except ValueError:
        values = 0.0, 0.0
    if not 1 <= values[1] < float("inf"):
        raise UserError(f"window={window} is unknown; use auto, file, percentiles or CENTER/WIDTH such as 40/400.")
    return values


def _all_facts(records: Sequence[Record], frames: str, root: Path) -> list[_Facts]:
    """Return what the headers say, read in the sandbox."""
    real_root = os.path.realpath(root)

    def step(number: int) -> Reply:
        file = records[number].file
        assert file is not None
        check_inside(file, real_root)
        return asdict(_silent(lambda: _read_facts(file, frames))), b""

    with Sandbox(step) as sandbox:
        found = list(sandbox.run(range(len(records))))
    return [_Facts(reason=str(one)) if isinstance(one, Unreadable) else _Facts.from_json(one[0]) for one in found]


def _frame_records(record: Record, facts: _Facts, window: str) -> list[Record]:
    """Return one record per file, or per frame when all frames are wanted."""
    file = record.file
    assert file is not None
    record = replace(record, header=facts.checked)
    if facts.num_frames == 1 or facts.header is None:
        return [replace(record, load=partial(_load, file, 0, window))]
    owner = record.group or record.path
    return [
        replace(record, path=f"{record.path}#{i}", group=owner, load=partial(_load, file, i, window))
        for i in range(facts.num_frames)
    ]


def _header(file: Path) -> Header:
    return _silent(lambda: _read_facts(file, "reject")).checked()


def _silent(step: Callable[[], T]) -> T:
    """Run pydicom on a file; whatever it raises or warns may quote an element, so that only its kind is told."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step()
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"cannot be decoded ({type(error).__name__})") from None


def _read_facts(file: Path, frames: str) -> _Facts:
    dataset = _open(file, _FACTS)
    height, width = int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))
    samples, bits = int(dataset.get("SamplesPerPixel", 1)), int(dataset.get("BitsAllocated", 8))
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    kind = str(dataset.get("PhotometricInterpretation", ""))
    check_size(height, width)
    if kind not in _GRAY + _COLOUR:
        named = f"'{kind}' " if kind in _OTHER else ""
        raise Unreadable(f"photometric interpretation {named}is not supported")
    if num_frames > MAX_FRAMES:
        raise Unreadable(f"{num_frames} frames are above the limit of {MAX_FRAMES}")
    if num_frames < 1 or height * width * samples * max(bits, 8) // 8 * num_frames > MAX_PIXEL_BYTES:
        raise Unreadable(f"{num_frames} frames of {width} x {height} pixels are above the limit of 1 GiB")
    if num_frames > 1 and frames == "reject":
        raise Unreadable(f"{num_frames} frames; use frames=all to take each as an image")
    header = Header(height, width, 1 if kind in _GRAY else 3, file.stat().st_size)
    return _Facts(num_frames, _pseudonym(str(dataset.get("PatientID", "") or "")), header)


def _pseudonym(patient: str) -> str:
    """Return a short hash of a patient's id: enough to tell people apart, and no name in the shards."""
    return hashlib.blake2b(patient.strip().encode(), digest_size=8).hexdigest() if patient.strip() else ""


def _open(file: Path, elements: str) -> Dataset:
    """Read some elements of a DICOM data set; raises Unreadable for what could unpack without bounds or is no image."""
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    open_image(file).close()  # a plain file, not too large
    try:
        meta = read_file_meta_info(file)
        # a deflated data set is inflated whole before its first element can be read: no limit can be checked before
        if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            raise Unreadable("deflated transfer syntax is not accepted; store it uncompressed")
        if str(meta.get("MediaStorageSOPClassUID", "")) == _DICOMDIR:
            raise Unreadable("a DICOMDIR, not an image")
        wanted = elements.split()
        return pydicom.dcmread(file, stop_before_pixels="PixelData" not in wanted, specific_tags=[*wanted])
    except InvalidDicomError:
        raise Unreadable("not a DICOM file (no DICM prefix)") from None


def _load(file: Path, frame: int, window: str, channels: int) -> UInt8Array:
    from data_shards.sources.dicom_pixels import frame_pixels

    choice: str | tuple[float, float] = window if window in ("auto", "file", "percentiles") else _explicit(window)
    return _silent(lambda: frame_pixels(_open(file, _PIXELS), frame, choice, channels))
