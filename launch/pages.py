"""Pages from templates: HTML with its style sheets inside, so that it needs no other file."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, styles: tuple[str, ...], **values: Any) -> str:
    """Return the page of `template` (PACKAGE/NAME.html.j2) with the style sheets (PACKAGE/NAME.css) inside."""
    packages = {name: PackageLoader("launch", name) for name in ("report", "compare", "retrieval", "dashboard")}
    pages = Environment(
        loader=PrefixLoader(packages), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = "".join(pages.get_template(name).render() for name in styles)
    inside = Markup(css)  # noqa: S704 - ours; no quote in it may be escaped
    return pages.get_template(template).render(css=inside, **values)
