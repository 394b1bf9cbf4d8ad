"""Input files that fsspec reads: which ones a URL names, what is known of them, and their bytes.

A URL is whatever fsspec can open: s3://, gs://, hf://, https://, zip://member::archive and so on. Its
settings (credentials, endpoints) are each filesystem's own, or fsspec's configuration.
"""

import glob
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

from fsspec.core import split_protocol, url_to_fs

from tuco_vllm.errors import InputError

_BUFFER = 1 << 20
_HTTP = ("http://", "https://")
# What the filesystems call these two; the first that one of them tells counts.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_VERSIONS = (
    *("ETag", "etag", "generation", "blob_id", "sha", "content_hash"),
    *("Content-MD5", "Digest", "Last-Modified", "CRC"),
)


class Look(NamedTuple):
    """What tells one content of a file from another; `InputFile` says what the fields mean."""

    size: int
    mtime_ns: int
    version: str


def absolute_url(url: str) -> str:
    """The URL with its local part, if it has one, made absolute: other processes have other directories."""
    bits = url.split("::")
    if split_protocol(bits[-1])[0] in (None, "file", "local"):
        with _asking(url):
            bits[-1] = f"file://{url_to_fs(bits[-1])[1]}"
    return "::".join(bits)


def expand_url(url: str, wanted: Callable[[str], bool]) -> list[tuple[str, Look]]:
    """The files that an absolute URL names; sorted by path and empty or more for a glob or a directory.

    Hidden files and names that begin with ``_`` are left out of directories, and so are URLs that are not
    ``wanted``. Raises InputError for a file that is not there and for whatever cannot be read or listed.
    """
    with _asking(url):
        fs, path = _filesystem(url)
        try:
            info = fs.info(path)
        except OSError:
            if not glob.has_magic(path):
                raise
            found = _matches(fs, path)
        else:
            if info["type"] != "directory" and not path.endswith("/"):  # to http everything is a file
                return [(url, _look(info))]
            found = [each for each in _below(fs, path) if wanted(_url_of(each["name"], fs, path, url))]
        found.sort(key=lambda each: each["name"].split("/"))
        found = [each if each.get("size") is not None else fs.info(each["name"]) for each in found]
        return [(_url_of(each["name"], fs, path, url), _look(each)) for each in found]


def look_at_url(url: str) -> Look:
    """What is known of a URL's file now. Raises InputError where that cannot be told."""
    with _asking(url):
        fs, path = _filesystem(url)
        fs.invalidate_cache()
        return _look(fs.info(path))


def open_url(url: str, size: int) -> io.BufferedReader:
    """The bytes of a URL's file, seekable; of a server that sends files only whole, a copy on disk.

    Raises InputError, also from reading, and where the file ends before its ``size`` (-1: unknown).
    """
    return io.BufferedReader(_RemoteBytes(url, size), _BUFFER)


def _matches(fs: Any, pattern: str) -> list[dict[str, Any]]:
    found = [info for info in fs.glob(pattern, detail=True).values() if info["type"] == "file"]
    if not found:
        # To glob, a folder that cannot be listed is an empty one: this raises the reason.
        start = min(pattern.find(each) for each in "*?[" if each in pattern)
        with suppress(FileNotFoundError):
            fs.ls(pattern[:start].rpartition("/")[0])
    return found


def _below(fs: Any, folder: str) -> Iterator[dict[str, Any]]:
    """The files at any depth. ``fs.find`` would take a folder that it fails to list for an empty one."""
    for info in fs.ls(folder, detail=True):
        name = info["name"].rstrip("/")
        # A bucket may hold an entry of the folder's own name.
        if name == folder.rstrip("/") or name.rpartition("/")[2].startswith((".", "_")):
            continue
        if info["type"] == "directory":
            yield from _below(fs, info["name"])
        else:
            yield info


def _url_of(name: str, fs: Any, path: str, url: str) -> str:
    """The URL of the file ``name``, where ``url`` is that of the glob or directory ``path`` that holds it."""
    bits = url.split("::")
    if not path and "://" not in bits[0]:  # zip::archive, the whole archive
        bits[0] += "://"
    own = next(number for number, bit in enumerate(bits) if "://" in bit)  # before it there are only caches
    for bit in (bits[own], bits[own].rstrip("/")):
        if bit.endswith(path):  # what stands before the path may be more than the scheme: user, host, port
            bits[own] = bit[: len(bit) - len(path)] + name
            break
    else:
        bits[own] = fs.unstrip_protocol(name)
    return "::".join(bits)


def _look(info: dict[str, Any]) -> Look:
    size = info.get("size")
    time: Any = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(time, datetime):
        time = time.timestamp()
    # Listing a file and asking for it tell one time with different fractions.
    mtime_ns = int(time) * 10**9 if isinstance(time, int | float) else 0
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return Look(-1 if size is None else size, mtime_ns, version)


def _filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and what the URL's file is called there."""
    if not url.startswith(_HTTP):
        return url_to_fs(url)
    from aiohttp import ClientTimeout

    # Bytes as they are stored, and no limit to how long a file may take as long as something arrives.
    timeout = ClientTimeout(total=None, sock_connect=30, sock_read=60)
    return url_to_fs(url, headers={"Accept-Encoding": "identity"}, client_kwargs={"timeout": timeout})


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Whatever a filesystem raises becomes an InputError: each has its own kinds of exceptions."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason: BaseException = error
        if isinstance(error, FileNotFoundError):
            reason = error.__cause__ or error  # http raises nothing else, whatever happened
            if reason is error or getattr(reason, "status", None) == 404:
                raise InputError(f"no such input: {url}") from error
        # For a missing package it is fsspec's message, which names what to install.
        message = " ".join(str(reason).split()) or type(reason).__name__
        if "support range requests" in message:  # only an archive cannot do without, see `_open_seekable`
            message = "its server sends files only whole; put simplecache:: before the http"
        raise InputError(f"cannot read {url}: {message}") from error


class _RemoteBytes(io.RawIOBase):
    def __init__(self, url: str, size: int) -> None:
        self._url, self._size = url, size
        with _asking(url):
            self._fs, path = _filesystem(url)  # kept: an archive is closed with its filesystem
            self._stream = _open_seekable(self._fs, path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _asking(self._url):
            data = self._stream.read(len(buffer))
            buffer[: len(data)] = data
            if not data and len(buffer) and self._stream.tell() < self._size:
                raise InputError(
                    f"cannot read {self._url}: it ends after {self._stream.tell()} of its {self._size} bytes"
                )
            return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _asking(self._url):
            return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_stream"):
            self._stream.close()
        super().close()


def _open_seekable(fs: Any, path: str) -> BinaryIO:
    stream: BinaryIO = fs.open(path, "rb")
    if not path.startswith(_HTTP):
        return stream
    try:
        stream.seek(-1, io.SEEK_END)
        stream.read(1)
        stream.seek(0)
        return stream
    except ValueError:  # the server ignores ranges, or does not know the size
        stream.close()
    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (whoever opens closes it)
    fs.get_file(path, copy)
    copy.seek(0)
    return copy
