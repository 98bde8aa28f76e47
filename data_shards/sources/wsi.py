"""wsi:PATH - whole-slide images, cut into patches of a physical size where there is tissue.

PATH is a folder PATH/[train|val|test/]CLASS/slide.svs, or a CSV table with the columns file and label, and patient,
split, mpp, skip when it has them. Everything that OpenSlide reads in one file is listed in folders; slides of many
files (DICOM) need a table that names one file of each. Slides may differ in resolution: a patch has `microns` a side
and is stored at `pixels`, whatever the scanner. The group is the patient, else the slide: a split tears none.

A patch is stored as "a/b.svs#x=1024,y=0": the slide, then its place in pixels of the finest level.
"""

from __future__ import annotations

from functools import partial
from os.path import realpath
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from data_shards.decode import Header, Unreadable, check_inside
from data_shards.errors import UserError
from data_shards.sandbox import Limits, Reply, Sandbox
from data_shards.sources.listing import Listing, Record, class_names
from data_shards.sources.published import left_out
from data_shards.sources.slides import Slide, checked_mpp, list_slides, without
from data_shards.sources.splits import complete
from data_shards.sources.wsi_slide import Cut, find_patches, load_patch

_SLIDE_SECONDS = 600


def read(
    path: Path,
    *,
    microns: float = 256.0,
    pixels: int = 256,
    tissue: float = 0.5,
    mpp: float | None = None,
    skip: str = "",
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
) -> Listing:
    """List the patches of slides; raises UserError for a slide of unknown resolution, and without OpenSlide.

    `mpp` overrides the microns per pixel of every slide that has none in the table. `skip` is a text file with the
    name of a slide per line, as the table or the folder has it; these are left out.
    """
    try:
        import openslide  # noqa: F401 - before workers are forked, so that none has to
    except (ImportError, OSError):
        raise UserError("Reading slides needs OpenSlide: pip install 'subspace-trainer[wsi]'.") from None
    cut, root = Cut(microns, pixels, tissue), path if path.is_dir() else path.parent
    slides, notes = list_slides(path)
    if skip:
        slides, named = without(slides, Path(skip).expanduser())
        notes = [*notes, *named]
    records, told = _patches(slides, cut, checked_mpp(mpp, f"mpp={mpp}"), root)
    records, drawn = complete(records, validation, test, seed)
    return Listing(
        root.name,
        class_names(records, ""),
        tuple(records),
        root=root,
        warnings=(*notes, *told, *drawn),
        default_size=pixels,
    )


def _patches(slides: list[Slide], cut: Cut, mpp: float | None, root: Path) -> tuple[list[Record], list[str]]:
    """Return the records of all slides, one for a slide that cannot be read, and notes."""
    real_root = realpath(root)

    def step(number: int) -> Reply:
        slide = slides[number]
        check_inside(slide.file, real_root)
        return find_patches(slide.file, slide.mpp or mpp, cut)

    records: list[Record] = []
    empty, enlarged = [], []
    with Sandbox(step, limits=Limits(seconds=_SLIDE_SECONDS)) as sandbox:
        for slide, found in zip(slides, sandbox.run(range(len(slides))), strict=True):
            if isinstance(found, Unreadable):
                records.append(_record(slide, slide.name, header=partial(_refuse, str(found))))
                continue
            facts, blob = found
            _check_resolution(slide, facts)
            places = np.frombuffer(blob, dtype=np.int64).reshape(-1, 2).tolist()
            empty += [] if places else [slide.name]
            enlarged += [slide.name] if facts["native_px"] < cut.pixels / 1.01 else []
            records += [_patch(slide, (x, y), (facts["mpp"][0], facts["mpp"][1]), cut) for x, y in places]
    if not records:
        raise UserError(f"No slide of {root} has a patch of {cut.microns:g} microns that is {cut.tissue:.0%} tissue.")
    notes = left_out("slide", empty, f"without a patch that is {cut.tissue:.0%} tissue")
    if enlarged:
        what = f"patches of {cut.microns:g} microns have fewer than {cut.pixels} pixels and are enlarged"
        notes.append(f"{len(enlarged)} slide(s) are too coarse: {what}, e.g. in {enlarged[0]}.")
    return records, notes


def _check_resolution(slide: Slide, facts: dict[str, Any]) -> None:
    if "mpp" in facts:
        return
    stated = f"states '{facts['stated']}'" if facts["stated"] else "does not state its"
    raise UserError(
        f"The slide {slide.name} {stated} microns per pixel; give them in the column mpp of a table, or mpp=0.5 (say) "
        "for all slides."
    )


def _patch(slide: Slide, place: tuple[int, int], mpp: tuple[float, float], cut: Cut) -> Record:
    header = Header(cut.pixels, cut.pixels, 3, 3 * cut.pixels**2)
    load = partial(load_patch, slide.file, place, mpp, cut)
    return _record(slide, f"{slide.name}#x={place[0]},y={place[1]}", header=lambda: header, load=load)


def _record(slide: Slide, path: str, **how: Any) -> Record:
    return Record(path, slide.label, slide.split, slide.patient or slide.name, file=slide.file, **how)


def _refuse(reason: str) -> NoReturn:
    raise Unreadable(reason)
