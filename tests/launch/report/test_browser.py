"""The report in a real browser: it fits, follows the reader's colours, is accessible, shows images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.report import write_report
from tests import browser

pytestmark = browser.MARKS


@pytest.fixture(scope="module")
def address(digit_run: Path) -> str:
    return write_report(digit_run).resolve().as_uri()


@pytest.mark.parametrize(("scheme", "width"), browser.SCREENS)
def test_everybody_can_read_it(address: str, scheme: Any, width: int) -> None:
    with browser.opened(address, scheme, width) as page:
        assert browser.fits(page)
        assert browser.background(page) == browser.BACKGROUNDS[scheme]
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert browser.findings(page) == []


def test_a_point_of_the_map_shows_its_image(address: str) -> None:
    with browser.opened(address) as page:
        assert not page.locator(".hover > i img").first.is_visible()
        page.locator(".hover > i").first.hover(force=True)
        assert page.locator(".hover > i:hover img").is_visible()  # it, or one that lies over it
        assert page.evaluate("[...document.querySelectorAll('.hover img')].every(i => i.complete)")
