"""The site builds without a warning, without a network, and asks for nothing outside of itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed"),
]
LOADED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc="?([^"\s>]+)|<link[^>]*\shref="?([^"\s>]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for match in LOADED.finditer(page.read_text(encoding="utf-8")):
            target = match[1] or match[2]
            assert not re.match(r"(https?:)?//", target), f"{page.name}: {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_generated_pages_are_filled(site: Path) -> None:
    for page, words in {
        "reference/config.html": "growth.min_selected",
        "reference/parts.html": "nearest_beyond_cutoff",
        "reference/commands.html": "--signal-seconds",
        "reference/python.html": "from_run",
        "changelog.html": "Semantic Versioning",
        "contributing.html": "How to add",
    }.items():
        text = (site / page).read_text(encoding="utf-8")
        assert words in text
        assert "made by `make docs`" not in text


def test_configurations_are_there_as_they_are(site: Path) -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert (site / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
