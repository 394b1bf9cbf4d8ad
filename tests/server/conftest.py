"""One server for all tests of this folder that need one, and one browser: they take long to start."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from server.chromium import Chromium
    from server.page_in_browser import Page
    from server.served import Server


@pytest.fixture(scope="session")
def server(pair_dirs, tmp_path_factory) -> "Iterator[Server]":
    from server.served import Server

    server = Server(pair_dirs("llama", "float32"), tmp_path_factory.mktemp("server") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chromium]":
    from server import chromium

    if chromium.BINARY is None:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    pytest.importorskip("websockets.sync.client")
    browser = chromium.Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser: "Chromium") -> "Iterator[Callable[..., Page]]":
    """A function that serves the fake API with given options and opens its page, which must not complain."""
    import uvicorn
    from server import fake_api
    from server.page_in_browser import Page

    served: list[Any] = []

    def serve(**options: object) -> "Page":
        app = fake_api.create(**options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        served.append((Page(browser, app, f"http://127.0.0.1:{port}"), server, thread))
        return served[-1][0]

    yield serve
    complaints = [line for page, _, _ in served for line in page.complaints()]
    browser.open("about:blank")
    for _, server, thread in served:
        server.should_exit = server.force_exit = True
        thread.join(10)
    assert complaints == []
