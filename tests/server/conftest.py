"""One server for all tests of this folder that need one: it takes long to start."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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
