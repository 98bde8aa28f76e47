"""One record of a listing -> one row of a shard: header check, decode, cut out, fit to size, encode.

Legend: H, W, C height, width, channels (1 or 3) of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_shards.decode import (
    Header,
    UInt8Array,
    Unreadable,
    check_inside,
    decode_stored,
    guarded,
    image_header,
    load_image,
    load_mask,
    read_bytes,
    to_array,
)
from data_shards.field_of_view import Region
from data_shards.fitting import encode_image, encode_png, fit_image, fit_mask
from data_shards.sandbox import Reply
from data_shards.sources.listing import Record
from data_shards.writer import Row

# stored bytes per raw byte, on the high side: cuts shards and checks the disk before anything is written
_EXPECTED_SHARE = {"raw": 1.0, "png": 0.8, "jpeg": 0.5, "as-is": 0.8}
_ROW_OVERHEAD_BYTES = 128


@dataclass(frozen=True)
class Form:
    """How images are stored: side `size` (None: as they are), `stored` form, `fit` rule, number of channels."""

    size: int | None
    stored: str
    fit: str
    channels: int


def probe(record: Record, real_root: str | None) -> Header:
    """Return the header of a record's image; raises Unreadable, also for a mask or image outside of `real_root`."""
    for file in (record.file, record.mask_file, *record.beside):
        if file is not None and real_root is not None:
            check_inside(file, real_root)
    if record.mask_file is not None:
        image_header(record.mask_file)
    if record.header is not None:
        return guarded(record.header)
    if record.file is None:
        raise Unreadable("neither a file nor drawn")
    return image_header(record.file)


def expected_bytes(header: Header, form: Form, has_mask: bool) -> int:
    """Return about how many bytes the row will take, on the high side."""
    height, width = (form.size, form.size) if form.size else (header.height, header.width)
    pixels = height * width
    verbatim = form.stored == "as-is" and header.verbatim
    image = header.num_bytes if verbatim else int(pixels * form.channels * _EXPECTED_SHARE[form.stored])
    return image + (pixels // 8 if has_mask else 0) + _ROW_OVERHEAD_BYTES


def render(record: Record, header: Header, form: Form) -> Reply:
    """Decode, fit and encode one record for `row_of`; raises Unreadable with the reason it cannot be used."""
    image, array, region = _stored_image(record, header, form)
    mask = _stored_mask(record, header, form, region)
    facts = {"height": array.shape[0], "width": array.shape[1], "image": len(image), "mask": mask is not None}
    return facts, image + (mask or b"")


def row_of(sample_id: int, record: Record, label: int, form: Form, rendered: Reply) -> Row:
    """Return the row of a record that `render` has rendered."""
    facts, stored = rendered
    return Row(
        sample_id=sample_id,
        label=label,
        group=record.group,
        path=record.path,
        height=facts["height"],
        width=facts["width"],
        channels=form.channels,
        image=stored[: facts["image"]],
        mask=stored[facts["image"] :] if facts["mask"] else None,
        factors=record.factors,
    )


def _stored_image(record: Record, header: Header, form: Form) -> tuple[bytes, UInt8Array, Region | None]:
    """Return the stored bytes of an image, its pixels, and the part of the source image that it is."""
    if record.load is None and record.region is None and form.stored == "as-is" and header.verbatim:
        assert record.file is not None
        data = read_bytes(record.file)
        # decoded by what the reader uses, so that nothing unreadable gets in
        return data, guarded(lambda: decode_stored(data, header.height, header.width, form.channels, None)), None
    array, region = _decoded(record, form), None
    if record.region is not None:
        region = record.region(array)
        top, bottom, left, right = region
        array = to_array(Image.fromarray(array[top:bottom, left:right]), form.channels)
    if form.size is not None and array.shape[:2] != (form.size, form.size):
        array = fit_image(array, form.size, form.fit)
    return encode_image(array, form.stored), array, region


def _decoded(record: Record, form: Form) -> UInt8Array:
    """Return (H, W, C) of the whole image, C = 3 where a region has to be found in it."""
    channels = form.channels if record.region is None else 3
    if record.load is not None:
        load = record.load
        return guarded(lambda: load(channels))
    assert record.file is not None
    # twice the size wanted: a DCT-scaled decode is then still filtered down, not up; regions are in whole pixels
    draft = 2 * form.size if form.size and form.fit == "crop" and record.region is None else None
    return load_image(read_bytes(record.file), channels, draft)


def _stored_mask(record: Record, header: Header, form: Form, region: Region | None) -> bytes | None:
    if record.mask_file is not None:
        mask = load_mask(read_bytes(record.mask_file))
    elif record.mask is not None:
        mask = Image.fromarray(np.asarray(guarded(record.mask)))
    else:
        return None
    if mask.size != (header.width, header.height):
        raise Unreadable(f"mask is {mask.width} x {mask.height}, image {header.width} x {header.height} pixels")
    if region is not None:
        top, bottom, left, right = region
        mask = mask.crop((left, top, right, bottom))
    return encode_png(fit_mask(mask, form.size, form.fit, record.mask_above))
