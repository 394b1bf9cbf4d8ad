"""The files of the page at /tuco: which are served, and with what headers."""

import pytest
from fastapi.testclient import TestClient
from server import fake_api

from tuco_vllm.server.page import ASSETS, POLICY

PATHS = ["/tuco", *(f"/tuco/{name}" for name in ASSETS)]


@pytest.mark.parametrize("path", PATHS)
def test_files_are_served_with_their_headers(path):
    answer = TestClient(fake_api.create()).get(path)
    assert answer.status_code == 200
    kind = ASSETS.get(path.removeprefix("/tuco/"), "text/html")
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["etag"]


@pytest.mark.parametrize("path", PATHS)
def test_headers_alone_can_be_asked_for(path):
    client = TestClient(fake_api.create())
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers == client.get(path).headers


@pytest.mark.parametrize("name", ["page.py", "page.html", "..%2fpage.py", "%2e%2e/__init__.py", "x"])
def test_nothing_else_is_served(name):
    assert TestClient(fake_api.create()).get(f"/tuco/{name}").status_code == 404


def test_the_page_is_open_where_the_api_is_not():
    client = TestClient(fake_api.create(api_key="secret"))
    assert client.get("/tuco").status_code == 200
    assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("path", PATHS)
def test_files_name_no_other_server_and_write_no_markup(path):
    text = TestClient(fake_api.create()).get(path).text
    text = text.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody fetches
    text = text.replace('<a href="https://arxiv.org/abs/2506.23423"', "")  # that a person may follow
    for word in ("://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style="):
        assert word not in text
