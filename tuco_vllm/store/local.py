"""A local directory as a store: files are written aside and fsynced, then get their name by a hard link.

A link fails where the name is taken, for every process and host that sees the directory, without locks (which
Lustre and many FUSE mounts lack). obstore's own local store neither fsyncs nor says who came first.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from tuco_vllm.errors import InputError
from tuco_vllm.records import STATE
from tuco_vllm.store.ranges import opened
from tuco_vllm.store.refusals import reading, refusals

SCRATCH = f"{STATE}/tmp"
"""What is being written lies here; what a kill leaves, the next run removes."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class LocalStore:
    """A directory; see ``places.Store``."""

    folder: Path
    """Absolute."""

    @property
    def where(self) -> str:
        return str(self.folder)

    def look(self) -> None:
        if os.path.lexists(self.folder) and not os.path.isdir(self.folder):
            raise InputError(f"--out {self.folder} is a file: name a directory")

    def create(self, name: str, data: bytes) -> bool:
        with self.scratch() as file:
            with refusals(self.folder / name):
                file.write_bytes(data)
            return self.publish(file, name)

    def replace(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with self.scratch() as file, refusals(path):
            file.write_bytes(data)
            _sync(file)
            _make_folder(path.parent)
            os.replace(file, path)
            _sync_folder(path.parent)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        file = self.folder / SCRATCH / f"{os.getpid()}-{uuid4().hex}"
        with refusals(self.folder):
            _make_folder(file.parent)
        try:
            yield file
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def publish(self, file: Path, name: str) -> bool:
        path = self.folder / name
        with refusals(path):
            _sync(file)
            _make_folder(path.parent)
            is_first = _linked(file, path)
            _sync_folder(path.parent)
        return is_first

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        with suppress(FileNotFoundError), reading(path):
            return path.read_bytes()
        return None

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        path = self.folder / name

        def fetch(start: int, length: int) -> bytes:
            with reading(path), path.open("rb", buffering=0) as file:
                file.seek(start)
                return file.read(length)

        with reading(path):
            return opened(path.stat().st_size if size is None else size, fetch)

    def list(self, folder: str = "") -> dict[str, int]:
        below = f"{folder.rstrip('/')}/" if folder else ""
        path, found = self.folder / below, {}
        with suppress(FileNotFoundError), reading(path), os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # others write and remove here
                    if entry.is_file():
                        found[below + entry.name] = entry.stat().st_size
        return found

    def delete(self, *names: str) -> None:
        folders = {}
        for name in names:
            path = self.folder / name
            with refusals(path), suppress(FileNotFoundError):
                os.unlink(path)
                folders[path.parent] = path
        for folder, path in folders.items():
            with refusals(path):
                _sync_folder(folder)


def _linked(file: Path, path: Path) -> bool:
    """Give ``file`` the name ``path`` as well, unless it is taken: then False."""
    try:
        os.link(file, path)
        return True
    except FileExistsError:
        with suppress(FileNotFoundError):
            return os.path.samefile(file, path)  # NFS may do it, lose the answer and ask again
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    # Two at the very same moment may both be told True; both wrote the same rows.
    if os.path.lexists(path):
        return False
    os.replace(file, path)
    return True


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:  # as some network file systems say
            raise
