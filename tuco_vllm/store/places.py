"""What the corpus pipeline asks of the place where a run's files lie.

Its promises rest on ``create`` and ``publish``: of all who give a name its content one is told True, and a
reader sees nothing or everything. ``replace`` is for files that one process owns. What they wrote is durable
when they return.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from tuco_vllm.errors import InputError
from tuco_vllm.store.local import LocalStore
from tuco_vllm.store.objects import ObjectStore

_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")


class Store(Protocol):
    """A place for a run's files, by names with slashes. Picklable; equal wherever it names the same place.

    Writing raises OutputError, reading InputError. No message names a credential.
    """

    @property
    def where(self) -> str:
        """The place, for messages."""

    @property
    def folder(self) -> Path | None:
        """The local directory that it is, if it is one."""

    def look(self) -> None:
        """Raise InputError where the place cannot be used at all. Nothing is written."""

    def create(self, name: str, data: bytes) -> bool:
        """Give ``name`` its content, unless it has one: then False.

        False may also be said to the one who did it, where the answer was lost: read what is there.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Give ``name`` this content in place of what it had."""

    def scratch(self) -> AbstractContextManager[Path]:
        """The path of a local file for ``publish``, to be written by the caller; it is gone afterwards."""

    def publish(self, file: Path, name: str) -> bool:
        """``create`` from a file that ``scratch`` gave.

        To an object store it goes through memory in one request (S3 takes up to 5 GiB): a multipart upload
        cannot be put on condition everywhere.
        """

    def read(self, name: str) -> bytes | None:
        """All of a file; None where there is none."""

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        """A file to seek in, of which only the ranges are read that are asked for; ``size`` saves asking.

        Raises FileNotFoundError where there is none. A failure to read is an InputError: to readers of
        Parquet an OSError may as well mean that the bytes are no Parquet.
        """

    def list(self, folder: str = "") -> dict[str, int]:
        """The files right in ``folder``, not below it, by their whole names -> bytes; "" is the top."""

    def delete(self, *names: str) -> None:
        """Remove these files, those that are there, durably."""


def store_at(out: str | os.PathLike[str]) -> Store:
    """The store that ``--out`` names: a local path, file://, s3://, gs://, az:// or abfs://.

    Raises InputError for another URL and for one with more in it than a place.
    """
    text = os.fspath(out)
    scheme, is_url, rest = text.partition("://")
    if not is_url or "/" in scheme:
        return LocalStore(Path(os.path.abspath(text)))
    if scheme == "file":
        return LocalStore(Path(os.path.abspath(rest)))
    if scheme not in _SCHEMES:
        raise InputError(f"no output goes to {scheme}://: name a directory, s3://, gs://, az:// or abfs://")
    parts = urlsplit(text)
    if parts.query or parts.fragment or parts.password is not None:
        raise InputError(f"--out {scheme}://... has more in it than a place: keys go into the environment")
    if not parts.netloc:
        raise InputError(f"--out {text} names no bucket: {scheme}://BUCKET/FOLDER")
    return ObjectStore(text.rstrip("/"))
