"""`subspace search`: the neighbours of image files, as rows and as a picture.

Legend: k neighbours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from data_shards.decode import Unreadable, read_bytes
from data_shards.errors import UserError
from launch.report import maps, theme
from launch.report.likeness import as_picture, show
from launch.retrieval.answer import Answer, Query, Refused
from launch.retrieval.originals import Originals
from launch.retrieval.searcher import Searcher


def search(
    run: Path, folder: Path | None, images: Sequence[str], how: Query, out: Path | None = None
) -> list[tuple[str, Answer]]:
    """Return an answer for each image, a file or a sample id of the index (digits), asked as `how`; draw them to `out`.

    Raises:
        UserError: no run, no index, an image that cannot be used, or a place that cannot be written to.
    """
    with Searcher(run, folder) as searcher:
        found = []
        for word in images:
            try:
                found.append((word, searcher.answer(_query(word, replace(how, overlay=out is not None)))))
            except Refused as refusal:
                raise UserError(f"{word}: {refusal}") from None
        if out is not None:
            _write(out, panel(found, searcher.originals))
    return found


def _query(word: str, how: Query) -> Query:
    if word.isdecimal() and len(word) < 19:
        return replace(how, sample_id=int(word))
    try:
        return replace(how, image=read_bytes(Path(word)))
    except Unreadable as reason:
        raise UserError(f"{word}: {reason}") from None


def panel(found: Sequence[tuple[str, Answer]], originals: Originals) -> bytes:
    """Return PNG bytes: a row per query with its picture, its attention if there is any, and its neighbours."""
    has_maps = any(answer.attention for _, answer in found)
    columns = 1 + has_maps + max(len(answer.neighbours) for _, answer in found)
    with theme.style():
        figure = Figure(figsize=(1.3 * columns, 1.85 * len(found)), layout="constrained")
        grid = figure.subplots(len(found), columns, squeeze=False)
        for axes in grid.ravel():
            theme.quiet(axes)
        for row, (word, answer) in zip(grid, found, strict=True):
            _draw_row(list(row), word, answer, has_maps, originals)
        return theme.to_png(figure)


def _draw_row(row: list[Axes], word: str, answer: Answer, has_maps: bool, originals: Originals) -> None:
    _cell(row[0], _picture(answer.picture), maps.short(Path(word).name, 16), "query")
    if has_maps:
        _cell(row[1], _picture(answer.attention), "attention", "")
    for axes, neighbour in zip(row[1 + has_maps :], answer.neighbours, strict=False):
        try:
            picture = as_picture(originals.seen(neighbour.sample_id).pixels)
        except Refused:
            picture = None
        _cell(axes, picture, maps.short(neighbour.label, 16), f"{neighbour.distance:.3f}")


def _cell(axes: Axes, picture: Image.Image | None, above: str, below: str) -> None:
    if picture is not None:
        show(axes, picture)
    axes.set_title(above, loc="center", fontsize=8)
    axes.set_xlabel(below, fontsize=8)


def _picture(address: str | None) -> Image.Image | None:
    """Return the picture of one of our own data: addresses."""
    if address is None:
        return None
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")


def _write(out: Path, content: bytes) -> None:
    try:
        out.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
