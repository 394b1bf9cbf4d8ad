"""An S3 server for tests (moto's), and a proxy before it that loses answers or lets nobody through.

    from object_store import object_store  # noqa: F401  (a fixture: a URL that is new to each test)

The server is started once a session, by whoever needs it first, and ends with it.
"""

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.records import PART_GLOB
from tuco_vllm.store import store_at

BUCKET = "tuco-tests"
SECRET = "do-not-print-this-secret"


@pytest.fixture
def object_store(monkeypatch) -> str:
    """The URL of an empty place in a bucket; this process and its children have the keys to it."""
    pytest.importorskip("obstore")
    for name, value in environment(server()).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


def dataset(url: str) -> pa.Table:
    """A run's parts, one after the other by name, as ``pq.read_table`` reads those in a directory."""
    store = store_at(url)
    parts = sorted(name for name in store.list() if fnmatch(name, PART_GLOB))
    return pa.concat_tables(pq.read_table(store.open(name)) for name in parts)


def environment(port: int) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "AKIATUCOTESTS",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }


@cache
def server() -> int:
    """The port of the session's server."""
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    owner = os.getpid()
    atexit.register(lambda: process.kill() if os.getpid() == owner else None)
    until = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request, timeout=5).close()
            return port
        except OSError:
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < until, "moto's server does not answer"
            time.sleep(0.1)


class Proxy(ThreadingHTTPServer):
    """Hands requests on to the session's server, and answers back.

    The answers of the next ``lose`` requests of ``method`` are lost after the server has done what they ask;
    while it is ``down``, nothing is handed on.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.method, self.lose, self.down = "PUT", 0, False
        self.requests: list[str] = []


@contextmanager
def proxy() -> Iterator[Proxy]:
    with Proxy() as between:
        thread = threading.Thread(target=between.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield between
        between.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        between = self.server
        between.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if between.down:
            self.close_connection = True
            return
        connection = HTTPConnection("127.0.0.1", server())
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        if between.lose and self.command == between.method:
            between.lose -= 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

    def log_message(self, *_):
        pass
