"""The page in a real browser: an image is dropped, neighbours come, subspaces and the patient filter change them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, expect

from launch.retrieval.answer import Answer, Query
from launch.retrieval.page import render
from launch.retrieval.searcher import Searcher
from launch.retrieval.web import Service, make_app
from tests import browser

pytestmark = browser.MARKS


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """Serve the page and the searches of this process's own searcher on a free port."""
    lock = threading.Lock()
    with Searcher(run) as searcher, socket.create_server(("127.0.0.1", 0)) as listener:

        async def ask(query: Query) -> Answer:
            with lock:
                return searcher.answer(query)

        page = partial(render, "digits", searcher.manifest, False)
        app = make_app(Service(ask, lambda: True, searcher.originals, page))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with browser.opened(address) as page:
        yield page


def order(page: Page) -> list[str]:
    return page.eval_on_selector_all("#neighbours > li", "items => items.map(item => item.dataset.sample)")


def answered(page: Page, words: str) -> None:
    expect(page.locator("#status")).to_contain_text(words)
    expect(page.locator("#found")).to_have_attribute("aria-busy", "false")


def test_an_image_is_searched_and_the_ranking_follows_the_choices(page: Page, files: Path) -> None:
    page.set_input_files("#file", files / "001.png")
    answered(page, "12 neighbours of 001.png")
    assert order(page)[0] == "1"
    expect(page.locator("#attention")).to_be_visible()
    page.wait_for_function("() => [...document.querySelectorAll('#neighbours img')].every(i => i.naturalWidth === 16)")
    assert page.locator("#neighbours .parts").first.locator("div").count() == 2
    whole = order(page)

    first, second = page.locator("#subspaces input").all()
    first.uncheck()
    answered(page, "12 neighbours")
    expect(page.locator("#neighbours .parts div.off").first).to_be_visible()
    only_second = order(page)
    assert only_second != whole
    second.click()  # the last one stays
    expect(second).to_be_checked()
    first.check()
    expect(page.locator("#neighbours .parts div.off")).to_have_count(0)
    assert order(page) == whole

    page.check("#exclude")
    answered(page, "without images of patient 0")
    assert not {"0", "1", "2"} & set(order(page))
    page.locator("#neighbours button").first.click()
    expect(page.locator("#query-name")).to_contain_text("digit")  # its label and path


def test_what_is_no_image_is_said(page: Page, files: Path) -> None:
    page.set_input_files("#file", files / "images.csv")
    expect(page.locator("#status")).to_contain_text("The image cannot be used")
    assert browser.findings(page) == []
    expect(page.locator("#found-block")).to_be_hidden()


@pytest.mark.parametrize(("scheme", "width"), browser.SCREENS)
def test_everybody_can_read_it(page: Page, files: Path, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.set_input_files("#file", files / "001.png")
    answered(page, "12 neighbours")
    assert browser.fits(page)
    assert browser.background(page) == browser.BACKGROUNDS[scheme]
    assert browser.findings(page) == []
