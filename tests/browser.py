"""A real browser for tests of pages: Debian's chromium, driven by playwright; and what axe-core finds in a page.

axe-core (Deque Systems, MPL-2.0, https://github.com/dequelabs/axe-core) comes with the package axe-playwright-python.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MARKS = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
PATIENCE_MS = 60_000


@contextmanager
def opened(address: str, scheme: Any = "light", width: int = 1200, height: int = 900) -> Iterator[Page]:
    """Open a page; what it complains of in the console, or throws, is an error in the end."""
    complaints: list[Any] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(error))
        page.on("console", lambda message: complaints.append(message.text) if _is_complaint(message) else None)
        page.goto(address)
        yield page
        browser.close()
    assert not complaints


def _is_complaint(message: Any) -> bool:
    """A refused request is written to the console by the browser itself."""
    return message.type == "error" and "Failed to load resource" not in message.text


def findings(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical in the page as it is now, an entry per rule and place."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-playwright-python is not installed")
    page.evaluate((Path(found.submodule_search_locations[0]) / "axe.min.js").read_text())
    told = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in told["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def fits(page: Page) -> bool:
    """Return whether nothing makes the page wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def background(page: Page) -> str:
    """Return the colour behind the page."""
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}
SCREENS = [("light", 1200), ("dark", 1200), ("light", 360), ("dark", 360)]
