"""Which files a data set consists of, and what is in them: local files, globs, and folders of such files.

Labelled questions are few, so a file is read whole; a sweep's identity has the SHA-256 of what it read.
"""

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tuco_vllm.errors import InputError


@dataclass(frozen=True)
class DataFile:
    """A file as it was read."""

    path: Path
    name: str
    """Its path below the folder that all files of the data set share: the stem of its rows' ids."""
    data: bytes

    @property
    def task(self) -> str:
        """What its rows are about where nothing else is said: its name without folders and extension."""
        return in_unicode(self.path.stem)

    @cached_property
    def sha256(self) -> str:
        """Of its bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()


def read_files(arguments: Sequence[str], extension: str) -> list[DataFile]:
    """The files that the arguments name, in their order, sorted by path within a glob or a folder.

    Of a folder those that lie right in it and end in ``extension``; hidden ones are left out. A file named
    twice counts once. Raises InputError for an argument without files and for what cannot be read.
    """
    paths = list(dict.fromkeys(path for argument in arguments for path in _expand(argument, extension)))
    if not paths:
        return []
    root = os.path.commonpath([path.parent for path in paths])
    return [DataFile(path, in_unicode(path.relative_to(root).as_posix()), _read(path)) for path in paths]


def in_unicode(name: str) -> str:
    """A file's name, which may be any bytes, as a text that Parquet takes."""
    return name.encode("utf-8", "replace").decode()


def _expand(argument: str, extension: str) -> list[Path]:
    path = Path(os.path.abspath(argument))
    try:
        if path.is_dir():
            found = [each for each in sorted(path.iterdir()) if each.name.endswith(extension)]
            found = [each for each in found if each.is_file() and not each.name.startswith(".")]
        elif path.exists():
            return [path]
        else:
            matches = (Path(os.path.abspath(match)) for match in sorted(glob.glob(argument)))
            found = [match for match in matches if match.is_file()]
    except (OSError, ValueError) as error:  # rights, a name too long, a null byte
        raise InputError(f"cannot read {argument!r:.200}: {error}") from error
    if not found:
        what = f"there is no {extension} file in it" if path.is_dir() else "no such file"
        raise InputError(f"{argument!r:.200}: {what}: name files, globs or folders of {extension} files")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
