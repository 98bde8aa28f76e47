"""The page in a real browser: an image is dropped, neighbours come, subspaces and the patient filter change them."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from launch.retrieval.answer import Answer, Query
from launch.retrieval.page import render
from launch.retrieval.searcher import Searcher
from launch.retrieval.web import Service, make_app

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_MS = 60_000
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


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
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        opened = browser.new_page()
        opened.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        complaints: list[Any] = []
        opened.on("pageerror", lambda error: complaints.append(error))
        opened.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
        opened.goto(address)
        yield opened
        browser.close()
        assert not complaints


def is_complaint(message: Any) -> bool:
    """A refused request is written to the console by the browser itself."""
    return message.type == "error" and "Failed to load resource" not in message.text


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
    expect(page.locator("#found-block")).to_be_hidden()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360)])
def test_it_fits_and_follows_the_readers_colours(page: Page, files: Path, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.set_input_files("#file", files / "001.png")
    answered(page, "12 neighbours")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
