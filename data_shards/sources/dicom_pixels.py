"""Pixels of one DICOM frame as uint8: decompression, modality LUT, VOI window, inversion, colour.

PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT; linear, linear exact and sigmoid windows), C.7.6.3.1.2 (photometric
interpretation), https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.11.2.html.

Legend: H, W height and width of a frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_shards.decode import UInt8Array, Unreadable, to_array
from data_shards.sources.dicom_codestream import stated_size

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PERCENTILES = (0.5, 99.5)
FloatArray = npt.NDArray[np.float64]


def frame_pixels(dataset: Dataset, frame: int, window: str | tuple[float, float], channels: int) -> UInt8Array:
    """Return (H, W, channels) uint8 of one frame; `window` is auto, file, percentiles or (center, width)."""
    kind = str(dataset.PhotometricInterpretation)
    raw = _decoded(dataset, frame)
    if kind.startswith("MONOCHROME"):
        shades = _shades(dataset, raw, window)
        if kind == "MONOCHROME1":
            shades = 1 - shades
        image = Image.fromarray(np.rint(shades * 255).astype(np.uint8))
    else:
        image = Image.fromarray(_colour(dataset, raw, kind))
    return to_array(image, channels)


def windowed(values: FloatArray, centre: float, width: float, function: str = "LINEAR") -> FloatArray:
    """Return shades in [0, 1] of one of the three VOI functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _decoded(dataset: Dataset, frame: int) -> npt.NDArray[Any]:
    from pydicom.pixels import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        _check_stream(dataset, frame)
    try:
        return np.asarray(pixel_array(dataset, index=frame))
    except RuntimeError as error:
        if not syntax.is_compressed:
            raise
        lacking = "missing dependencies" in str(error) or "no available" in str(error).lower()
        hint = "; install pylibjpeg with its plugins (extra 'dicom')" if lacking else ""
        raise Unreadable(f"compressed pixels ({syntax.name}) cannot be decoded{hint}") from None


def _check_stream(dataset: Dataset, frame: int) -> None:
    """Raise Unreadable unless the compressed frame is of the size that the header states and that was checked."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return  # decoded into an array of the header's size
    frames = int(dataset.get("NumberOfFrames") or 1)
    stated = stated_size(get_frame(dataset.PixelData, frame, number_of_frames=frames))
    if stated != (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel):
        raise Unreadable(f"compressed pixels state another size (height, width, samples {stated}) than the header")


def _shades(dataset: Dataset, raw: npt.NDArray[Any], window: str | tuple[float, float]) -> FloatArray:
    from pydicom.pixels import apply_modality_lut

    values = np.asarray(apply_modality_lut(raw, dataset), dtype=np.float64)
    if not np.isfinite(values).all():
        raise Unreadable("pixel values are not finite")
    if isinstance(window, tuple):
        return windowed(values, *window)
    if window != "percentiles":
        if "VOILUTSequence" in dataset:
            return _voi_table(dataset, values)
        if "WindowCenter" in dataset and "WindowWidth" in dataset:
            centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
            return windowed(values, centre, width, str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR"))
        if window == "file":
            raise Unreadable("the file has no window; use window=auto, percentiles or CENTER/WIDTH")
    return _by_percentiles(values, _padding(dataset, raw))


def _voi_table(dataset: Dataset, values: FloatArray) -> FloatArray:
    from pydicom.pixels import apply_voi

    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
    return np.clip(np.asarray(apply_voi(values.astype(np.int64), dataset), dtype=np.float64) / (2**bits - 1), 0, 1)


def _by_percentiles(values: FloatArray, padding: npt.NDArray[np.bool_]) -> FloatArray:
    inside = values[~padding] if not padding.all() else values
    low, high = np.percentile(inside, PERCENTILES)
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _padding(dataset: Dataset, raw: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return (H, W) True where the scanner wrote its padding value: those pixels would bend the percentiles."""
    value = dataset.get("PixelPaddingValue")
    return np.zeros(raw.shape, dtype=bool) if value is None else np.asarray(raw == value)


def _colour(dataset: Dataset, raw: npt.NDArray[Any], kind: str) -> UInt8Array:
    from pydicom.pixels import apply_color_lut

    pixels = np.asarray(apply_color_lut(raw, dataset) if kind == "PALETTE COLOR" else raw)
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise Unreadable("colour image without three samples per pixel")
    return (pixels[..., :3] >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
