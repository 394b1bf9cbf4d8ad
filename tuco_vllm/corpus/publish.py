"""Make a file appear whole or not at all: write it under a hidden name, fsync, rename, fsync the folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tuco_vllm.errors import TucoError


class OutputError(TucoError):
    """The output cannot be written (disk full, rights lost); what was published stays."""


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; finished parts stay, "
            "and the same command (without --overwrite) goes on from there"
        ) from error


def hidden(path: Path) -> Path:
    """The name under which ``path`` is written until it is whole; readers of the folder skip it."""
    return path.with_name(f".{path.name}.tmp")


def publish(file: IO[bytes], path: Path) -> None:
    """Close ``file``, written as ``hidden(path)``, and make it ``path``. Durable when this returns."""
    with refusals(path):
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(hidden(path), path)
        _sync_folder(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write or replace a small text file as a whole."""
    with refusals(path), hidden(path).open("wb") as file:
        file.write(text.encode())
        publish(file, path)


def remove(path: Path) -> None:
    """Remove a file, if it is there, durably."""
    with refusals(path):
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
