"""The HTTP service around a searcher in this process: answers, refusals, guards and the page's facts."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from launch.retrieval.answer import Answer, Query
from launch.retrieval.page import render
from launch.retrieval.searcher import Searcher
from launch.retrieval.web import Busy, Service, make_app

TOKEN = "a token of some length"
LOOPBACK = "http://127.0.0.1"


@pytest.fixture(scope="module")
def searcher(run: Path) -> Iterator[Searcher]:
    with Searcher(run) as opened:
        yield opened


@pytest.fixture(scope="module")
def service(searcher: Searcher) -> Service:
    async def ask(query: Query) -> Answer:
        return searcher.answer(query)

    page = partial(render, "digits", searcher.manifest, False)
    return Service(ask, lambda: True, searcher.originals, page, max_bytes=1 << 20)


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(make_app(service), base_url=LOOPBACK)


def sentence(response: object, status: int) -> str:
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert isinstance(detail, str) and detail
    return detail


def test_an_image_is_answered_as_the_searcher_answers(client: TestClient, searcher: Searcher, files: Path) -> None:
    data = (files / "009.png").read_bytes()
    asked = "/search?k=5&subspaces=1&exclude=group&group=patient 5"
    response = client.post(asked, content=data, headers={"content-type": "image/png"})
    assert response.status_code == 200, response.text
    direct = searcher.answer(Query(data, None, 5, (1,), "group", "patient 5", True))
    assert response.json() == direct.model_dump()
    for name in ("picture", "attention"):
        picture = Image.open(io.BytesIO(base64.b64decode(response.json()[name].partition(",")[2])))
        assert picture.width == picture.height
    assert client.post("/search?pictures=false", content=data).json()["attention"] is None


def test_an_indexed_image_and_its_picture(client: TestClient, searcher: Searcher) -> None:
    found = client.get("/search/1?exclude=group").json()
    assert found["excluded_group"] == "patient 0"
    response = client.get(f"/images/{found['neighbours'][0]['sample_id']}")
    assert response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(response.content)).size == (16, 16)
    for path in ("/search/9", "/images/9", "/images/-1", "/search/99999999999999999999"):
        sentence(client.get(path), 404)
    sentence(client.get("/images/x"), 422)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "image/png", 400),
        (b"GIF89a" + bytes(100), "image/png", 400),
        (bytes(128) + b"DICM", "application/dicom", 400),
        (b"\xff\xd8\xff" + bytes(1000), "image/jpeg", 400),
        (b"<html>", "text/html", 415),
        (b"--x", "multipart/form-data; boundary=x", 415),
        (bytes(1 << 20) + b"\0", "image/png", 413),
    ],
)
def test_what_cannot_be_used_gets_a_sentence(client: TestClient, body: bytes, kind: str, status: int) -> None:
    sentence(client.post("/search", content=body, headers={"content-type": kind}), status)


def test_a_large_body_is_refused_before_it_has_arrived(client: TestClient) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield bytes(1 << 16)

    sentence(client.post("/search", content=endless()), 413)
    sentence(client.post("/search", content=b"x", headers={"content-length": "99999999999"}), 413)
    sentence(client.post("/search", content=b"x", headers={"content-length": "9" * 5000}), 413)


def test_a_body_that_does_not_come_is_not_waited_for(service: Service, files: Path) -> None:
    statuses = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/search", "raw_path": b"/search", "query_string": b""}
    scope |= {
        "headers": [(b"host", b"localhost")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(make_app(replace(service, body_timeout_s=0.05))(scope, receive, send))
    assert statuses[0] == 408


@pytest.mark.parametrize(
    "words", ["k=0", "k=1001", "k=x", "subspaces=a", "subspaces=7", "subspaces=0,0", "subspaces=-1", "exclude=all"]
)
def test_parameters_that_mean_nothing(client: TestClient, files: Path, words: str) -> None:
    assert words.split("=")[0] in sentence(
        client.post(f"/search?{words}", content=(files / "009.png").read_bytes()), 422
    )


def test_overload_is_503_with_a_time_to_try_again(service: Service, files: Path) -> None:
    async def busy(_: Query) -> Answer:
        raise Busy("all replicas are busy")

    overloaded = TestClient(make_app(replace(service, ask=busy, alive=lambda: False)), base_url=LOOPBACK)
    response = overloaded.post("/search", content=b"x")
    assert sentence(response, 503) == "all replicas are busy"
    assert response.headers["retry-after"] == "1"
    assert overloaded.get("/health").status_code == 503
    assert overloaded.get("/images/1").status_code == 200


def test_a_token_is_wanted_for_everything_but_the_page_and_health(service: Service) -> None:
    guarded = TestClient(make_app(replace(service, token=TOKEN)), base_url="http://anywhere.example")
    for method, path in (("POST", "/search"), ("GET", "/search/1"), ("GET", "/images/1"), ("GET", "/metrics")):
        for given in (None, "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"):
            headers = {"authorization": given.encode("latin-1")} if given else {}
            sentence(guarded.request(method, path, headers=headers), 401)
    assert guarded.get("/images/1", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert guarded.get("/").status_code == guarded.get("/health").status_code == 200


def test_without_a_token_only_loopback_hosts_are_answered(client: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example:80"):
        assert client.get("/search/1", headers={"host": host}).status_code == 403
        assert client.get("/", headers={"host": host}).status_code == 403
    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        assert client.get("/search/1", headers={"host": host}).status_code == 200


def test_requests_are_counted(client: TestClient, files: Path) -> None:
    client.post("/search", content=(files / "009.png").read_bytes())
    client.post("/search", content=b"")
    client.get("/images/1")
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        'subspace_requests_total{route="/search",status="200"} 1.0',
        'subspace_requests_total{route="/search",status="400"} 1.0',
        'subspace_requests_total{route="/images/{sample_id}",status="200"} 1.0',
        'subspace_requests_total{route="other",status="404"} 1.0',
        'subspace_request_seconds_count{route="/search"} 2.0',
    ):
        assert line in text


def test_the_schema_names_what_can_be_sent_and_what_comes_back(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    search = schema["paths"]["/search"]["post"]
    assert {"image/png", "application/dicom"} <= set(search["requestBody"]["content"])
    assert {"200", "400", "401", "413", "415", "503"} <= set(search["responses"])
    assert set(schema["components"]["schemas"]["Answer"]["properties"]) == set(Answer.model_fields)


def test_the_page_allows_its_own_script_only(client: TestClient, run: Path) -> None:
    first, second = client.get("/"), client.get("/")
    rules = first.headers["content-security-policy"]
    nonce = rules.partition("script-src 'nonce-")[2].partition("'")[0]
    assert f'<script nonce="{nonce}">' in first.text
    assert nonce not in second.text
    assert "http" not in first.text.replace("http://www.w3.org", "")
    facts = json.loads(first.text.partition('id="facts">')[2].partition("</script>")[0])
    assert [one["name"] for one in facts["subspaces"]] == ["S1", "S2"]


def test_a_name_of_a_run_is_text_on_the_page(searcher: Searcher) -> None:
    text = render("<script>alert(1)</script>", searcher.manifest, True, "n")
    assert "<script>alert" not in text
    assert np.char.count(text, "<script") == 2
