"""What mkdocs asks of us while it builds: generated references, pages that lie beside docs/, links that lead out of it.

Markdown stays where it is read in the repository. A page of docs/reference/ holds a marker, which the site has the
generated text in place of. Pages of the root (CONTRIBUTING.md and its like) and configurations are put into the site
under names of their own, and links to them are turned there.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]  # what is documented is this checkout

import commands  # noqa: E402
import config_keys  # noqa: E402
import parts  # noqa: E402
import python_names  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402

PAGES = {"config": config_keys.page, "commands": commands.page, "parts": parts.page, "python": python_names.page}
MARKER = re.compile(r"<!-- made by `make docs`: (\w+) -->")
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root, and the configurations as they are."""
    for name in BESIDE:
        files.append(File.generated(config, name.lower(), content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put generated text in the place of its marker, and turn links to where their targets are on the site."""
    made = MARKER.sub(lambda match: PAGES[match[1]](), markdown)
    source = page.file.src_uri
    in_repository = next((name for name in BESIDE if name.lower() == source), f"docs/{source}")
    return LINK.sub(lambda match: turned(match[1], in_repository, source) + (match[2] or ""), made)


def turned(link: str, page: str, source: str) -> str:
    """Return a link of a page of the repository as the site has it, `source` being the page's place there."""
    if re.match(r"[a-z]+:|/", link):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if target in BESIDE:
        place = target.lower()
    elif target.startswith("docs/"):
        place = target.removeprefix("docs/")
    elif target == "README.md":
        place = "index.md"
    else:
        place = target
    return posixpath.relpath(place, posixpath.dirname(source) or ".")
