"""The dashboard in a real browser: runs are listed and followed, ticked ones compared, and everybody can read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests import browser
from tests.launch.dashboard.make_runs import make_run

pytestmark = browser.MARKS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "eyes" / "seed-0")
    make_run(tmp_path / "eyes" / "seed-1", 800, state="running", phase="clustering")
    make_run(tmp_path / "eyes" / "bad")
    (tmp_path / "eyes" / "bad" / "status.json").write_text("{")
    return tmp_path


@pytest.fixture
def page(root: Path, serving: Callable[..., str]) -> Iterator[Page]:
    with browser.opened(serving(root)) as page:
        expect(page.locator("#status")).to_have_text("3 runs below eyes, 1 running.")
        yield page


def paths(page: Page, chart: int) -> int:
    return page.locator("#charts figure").nth(chart).locator("path").count()


def test_runs_are_listed_and_the_ticked_ones_compared(page: Page) -> None:
    lines = page.locator("#runs tbody tr")
    expect(lines).to_have_count(3)
    expect(lines.nth(0)).to_contain_text("clustering")
    expect(lines.nth(0)).to_contain_text("8 of 10")
    expect(lines.nth(1)).to_contain_text("completed")
    expect(lines.nth(2)).to_contain_text("is damaged")
    expect(lines.nth(2).locator("input")).to_be_disabled()
    expect(page.locator("#charts path")).to_have_count(8)
    expect(page.locator("#legend li")).to_have_count(2)
    page.locator("#runs input").first.uncheck()
    expect(page.locator("#charts path")).to_have_count(4)
    assert [paths(page, chart) for chart in range(4)] == [1, 1, 1, 1]
    page.locator("#runs input").first.check()
    expect(page.locator("#charts path")).to_have_count(8)


def test_axes_and_scores_can_be_chosen(page: Page) -> None:
    expect(page.locator("#charts path")).to_have_count(8)
    assert page.locator("#score option").all_text_contents()[:2] == ["recall@1", "NMI"]
    page.select_option("#score", "NMI")
    expect(page.locator("#charts figcaption").nth(1)).to_have_text("Validation NMI")
    page.select_option("#across", "1")
    expect(page.locator("#charts svg").first).to_contain_text("step")
    page.select_option("#across", "2")
    expect(page.locator("#charts svg").first).to_contain_text("hours")
    before = page.locator("#charts path").first.get_attribute("d")
    page.check("#log")
    assert page.locator("#charts path").first.get_attribute("d") != before
    page.hover("#charts svg >> nth=0", position={"x": 200, "y": 100})
    expect(page.locator("#legend li").first).to_contain_text("loss 1.")
    expect(page.locator("#charts svg").first).to_have_attribute(
        "aria-label", "Training loss, at the end: seed-1 1.11; seed-0 1.2"
    )


def test_it_follows_a_run_that_goes_on(page: Page, root: Path) -> None:
    expect(page.locator("#runs tbody tr").nth(0)).to_contain_text("8 of 10")
    make_run(root / "eyes" / "seed-1", 1000, state="running", phase="validation")
    expect(page.locator("#runs tbody tr").nth(0)).to_contain_text("10 of 12")
    expect(page.locator("#runs tbody tr").nth(0)).to_contain_text("validation")
    page.fill("#filter", "seed-0")
    expect(page.locator("#runs tbody tr")).to_have_count(1)


def test_a_token_is_asked_for(root: Path, serving: Callable[..., str]) -> None:
    with browser.opened(serving(root, "a token of some length")) as page:
        expect(page.locator("#status")).to_contain_text("Send the token of this dashboard")
        page.fill("#token", "a token of some length")
        expect(page.locator("#status")).to_contain_text("3 runs")
        assert browser.findings(page) == []


@pytest.mark.parametrize(("scheme", "width"), browser.SCREENS)
def test_everybody_can_read_it(root: Path, serving: Callable[..., str], scheme: Any, width: int) -> None:
    with browser.opened(serving(root), scheme, width) as page:
        expect(page.locator("#charts path")).to_have_count(8)
        assert browser.fits(page)
        assert browser.background(page) == browser.BACKGROUNDS[scheme]
        assert browser.findings(page) == []
