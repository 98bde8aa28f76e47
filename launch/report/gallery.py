"""The figures of a page, embedded so that it needs no other file.

Every figure is an SVG image that follows the reader's light or dark page; wide ones have a second drawing for
telephones. The same figures are kept as PNG, for papers and slides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from launch.report import figures, theme

Draw = Callable[[float], Figure | None]  # width in inches -> figure, None when there is nothing to show


@dataclass(frozen=True)
class Picture:
    """A figure on the page: `caption` says what one sees, `alt` says it to those who do not see."""

    name: str
    uri: str
    narrow_uri: str | None
    alt: str
    caption: str


class Gallery:
    """Draws figures, keeps their PNG and hands out what the page embeds."""

    def __init__(self) -> None:
        self.plots: dict[str, bytes] = {}

    def add(self, name: str, draw: Draw, alt: str, caption: str, wide: bool = False) -> Picture | None:
        """Draw by `draw(width in inches)`; None when there is nothing to show."""
        with theme.style():
            figure = draw(figures.WIDE if wide else figures.NARROW)
            if figure is None:
                return None
            self.plots[name] = theme.to_png(figure)
            uri = theme.data_uri(theme.to_svg(figure), "svg+xml")
            narrow = draw(figures.NARROW) if wide else None
            narrow_uri = None if narrow is None else theme.data_uri(theme.to_svg(narrow), "svg+xml")
        return Picture(name, uri, narrow_uri, alt, caption)

    def save(self, folder: Path) -> None:
        """Write the drawn figures as FOLDER/NAME.png."""
        folder.mkdir(exist_ok=True)
        for name, content in self.plots.items():
            (folder / f"{name}.png").write_bytes(content)
