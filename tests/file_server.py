"""A web server of files in memory, in the manners that web servers have: for inputs that are URLs."""

import gzip
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves ``files`` (path -> bytes) at ``url``.

    ``manner``: ranges (on request), whole (ranges are ignored), gzip (ranges, of the packed file for
    clients that take it so), no size (the file ends with the connection), cut (the last byte is missing).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.manner = "ranges"
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def file_server() -> Iterator[FileServer]:
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        manner, data = self.server.manner, self.server.files.get(self.path.partition("?")[0])
        if data is None:
            self.send_error(404)
            return
        headers, status = {}, 200
        if manner == "gzip" and "gzip" in self.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"], data = "gzip", gzip.compress(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and manner in ("ranges", "gzip"):
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
            headers["Content-Range"], status = f"bytes {start}-{end - 1}/{len(data)}", 206
            data = data[start:end]
        self.send_response(status)
        if manner == "no size":
            headers["Connection"] = "close"
        else:
            headers["Content-Length"] = str(len(data))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:-1] if manner == "cut" else data)
        self.close_connection = manner in ("no size", "cut")

    def log_message(self, *_):
        pass
