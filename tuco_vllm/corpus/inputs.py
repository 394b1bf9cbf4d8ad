"""Which files a corpus consists of: arguments (files, globs, directories, URLs) -> files in a fixed order."""

import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

from tuco_vllm.corpus.remote import Look, absolute_url, expand_url, look_at_url, open_url
from tuco_vllm.errors import InputError

FORMATS = ("auto", "jsonl", "csv", "parquet", "txt")
_BY_EXTENSION = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".txt": "txt",
}
_COMPRESSED = (".gz", ".zst", ".bz2")
_OF_THIS_PROCESS = re.compile(r"/dev/stdin|(/dev|/proc/self)/fd/\d+")
"""Paths that mean something else, or nothing, to the processes that read."""


@dataclass(frozen=True)
class InputFile:
    """One file of the corpus, as it was when the job looked at it."""

    path: str
    """The absolute path of a local file, the URL of another."""
    name: str
    """The stem of its rows' ids. A file's place is scheme, host or bucket, folders and file name, and an
    archive counts as a folder; the name is the place below the folder that all inputs share, with slashes.
    So it is a relative path while all inputs lie in one filesystem, and ``file/data/x.jsonl`` or
    ``s3/bucket/x.jsonl`` in a mix. Where places are equal (URLs that differ in their query), ``#2`` and so on
    stands after the later ones."""
    format: str
    size: int
    """In bytes; -1 where nobody can tell."""
    mtime_ns: int
    """0 where the filesystem does not tell; in whole seconds where the file is not local."""
    version: str = ""
    """The filesystem's own mark of this content (ETag, generation, checksum); "" where it has none."""
    copy: str | None = None
    """The absolute path of the file that stands in for it, if one does: see ``pipes.py``."""

    @property
    def remote(self) -> bool:
        """Whether it is read through fsspec."""
        return _is_url(self.path)

    @property
    def once(self) -> bool:
        """Whether it can be read only once, or only by this process: a pipe, /dev/stdin, a device."""
        return self.size == -1 and not self.remote

    @property
    def file_name(self) -> str:
        """The last part of its path, without a URL's query."""
        return _place(self.path)[-1]

    @property
    def extension(self) -> str:
        """What its name ends with, in small letters, without what says that it is compressed."""
        return _extension(self.file_name)

    @property
    def compressed(self) -> bool:
        """Whether its name ends as gzip's, zstandard's or bzip2's do."""
        return Path(self.file_name.lower()).suffix in _COMPRESSED

    @property
    def local_path(self) -> str:
        """Where its bytes lie, if it is not remote."""
        return self.copy or self.path

    def open(self) -> io.BufferedReader:
        """Its bytes as they are stored, seekable. Raises InputError; reading a remote file does so too."""
        if self.remote:
            return open_url(self.path, self.size)
        try:
            return io.BufferedReader(io.FileIO(self.local_path), 1 << 20)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error

    def changed(self) -> str | None:
        """Look again: what is not as it was, in words, or None. Raises InputError where nobody can look.

        Only what the filesystem tells both times is compared: of a file that it is asked for, a store may
        tell more than of one that it lists.
        """
        now = look_at_url(self.path) if self.remote else _look_at(Path(self.local_path))
        for what, before, after, untold in (
            ("size", self.size, now.size, -1),
            ("time of change (ns)", self.mtime_ns, now.mtime_ns, 0),
            ("version", self.version, now.version, ""),
        ):
            if before != after and untold not in (before, after):
                return f"input {self.path} changed while it was read: its {what} was {before} and is {after}"
        return None


def find_inputs(arguments: Sequence[str], file_format: str = "auto", *, out: str | Path) -> list[InputFile]:
    """The corpus in reading order: the arguments' order, sorted by path inside a glob or a directory.

    A file named twice counts once. Directories are searched to any depth for files whose extension tells
    their format; hidden files, names that begin with ``_`` and whatever lies under ``out`` are left out.
    Links to folders are followed, to each folder once; what lies under ``out`` is told by real paths, and by
    its URL where that is one.
    An argument with ``://`` in it is a URL, of a file, a glob or a directory; ``file://`` is a local path.
    Pipes and devices count where they are named themselves; nothing is read of them here.
    Raises InputError for an argument without files, for what cannot be looked at or listed, for a link to
    nothing where a file is wanted, and for a format that the extension does not tell.
    """
    real_out = os.path.realpath(str(out).removeprefix("file://"))
    looks: dict[str, Look] = {}
    formats: dict[str, str] = {}
    for argument in arguments:
        for path, look in _expand(argument, file_format, real_out):
            if path.startswith(f"{str(out).rstrip('/')}/") and _is_url(path):
                continue
            looks.setdefault(path, look)
            formats.setdefault(path, file_format if file_format != "auto" else _format_of(path))
    return [
        InputFile(path, name, formats[path], *look)
        for name, (path, look) in zip(input_names([*looks]), looks.items(), strict=True)
    ]


def _is_url(argument: str) -> bool:
    return "://" in argument  # no absolute path has two slashes in a row


def _expand(argument: str, file_format: str, real_out: str) -> Iterable[tuple[str, Look]]:
    if _is_url(argument):
        url = absolute_url(argument)
        if "::" in url or not url.startswith("file://"):
            found = expand_url(url, lambda each: _has_format(_place(each)[-1], file_format))
            if not found:
                raise InputError(_missing(argument, file_format, is_directory=not glob.has_magic(argument)))
            return found
        argument = url.removeprefix("file://")
    return ((str(path), _look_at(path)) for path in _expand_local(argument, file_format, real_out))


def _expand_local(argument: str, file_format: str, real_out: str) -> list[Path]:
    path = Path(os.path.abspath(argument))
    try:
        if _reads_once(path):
            return [path]
        if path.is_dir():
            below = (file for file in _below(path, real_out) if _has_format(file.name, file_format))
            found = sorted(file for file in below if _is_file(file))
        elif _is_file(path):
            return [path]
        elif glob.has_magic(argument):
            matches = (Path(os.path.abspath(match)) for match in sorted(glob.glob(argument, recursive=True)))
            found = [file for file in matches if _is_file(file)]
        else:
            raise InputError(f"no such input: {argument}")
        found = [file for file in found if not _lies_in(real_out, file)]
        if not found:
            raise InputError(_missing(argument, file_format, is_directory=path.is_dir()))
    except OSError as error:  # rights, a name too long; that there is nothing is no error to pathlib
        raise InputError(f"cannot read {error.filename or argument}: {error.strerror}") from error
    return found


def _below(directory: Path, real_out: str) -> Iterator[Path]:
    """Its files at any depth, but for hidden ones and names that begin with ``_``.

    Links to folders are followed, to each folder once, so they may run in a circle. Raises InputError for a
    folder that cannot be listed: to pathlib and glob it would be an empty one.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename}: {error.strerror}") from error

    seen = {real_out}
    for folder, folders, files in os.walk(directory, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        shown = [] if real in seen else [name for name in folders if not name.startswith((".", "_"))]
        # In an order of ours, so that every run names a folder alike; by its own name before a link's.
        folders[:] = sorted(shown, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        if real not in seen:
            yield from (Path(folder, name) for name in files if not name.startswith((".", "_")))
        seen.add(real)


def _is_file(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        fetch = "fetch it (git annex get, dvc pull) or remove the link"
        raise InputError(f"cannot read {path}: it is a link that points to nothing; {fetch}")
    return path.is_file()


def _lies_in(real_folder: str, file: Path) -> bool:
    """Whether the file, or what it links to, lies there at any depth."""
    parents = {os.path.realpath(file.parent), os.path.dirname(os.path.realpath(file))}
    return any(os.path.commonpath((real_folder, parent)) == real_folder for parent in parents)


def _missing(argument: str, file_format: str, *, is_directory: bool) -> str:
    if not is_directory:
        return f"no file matches {argument}"
    *some, last = (name for name, each in _BY_EXTENSION.items() if file_format in ("auto", each))
    return f"{argument} holds no {', '.join(some)}{' or ' if some else ''}{last} file"


def _reads_once(path: Path) -> bool:
    if not path.exists() or path.is_dir():
        return False
    return not path.is_file() or _OF_THIS_PROCESS.fullmatch(str(path)) is not None


def _look_at(path: Path) -> Look:
    try:
        if _reads_once(path):
            return Look(-1, 0, "")
        stat = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return Look(stat.st_size, stat.st_mtime_ns, "")


def _place(path: str) -> tuple[str, ...]:
    """Scheme, host or bucket, folders, file name; what an archive holds is below the archive."""
    if not _is_url(path):
        return ("file", *Path(path).parts[1:])
    schemes, parts = [], []
    for bit in reversed(path.split("::")):
        scheme, is_place, rest = bit.partition("://")  # a cache has no place of its own
        if scheme in ("http", "https"):
            url = urlsplit(bit)
            rest = url.netloc.rpartition("@")[2] + url.path  # no password in ids
        if is_place:
            schemes.append(scheme)
            parts += [part for part in rest.split("/") if part]
    return (schemes[0], *parts)


def input_names(paths: Sequence[str], later: Sequence[str] = ()) -> list[str]:
    """The names of these inputs, see ``InputFile.name``; then of ``later`` ones, for which nothing moves: one
    that is not below the folder that the first share is named by its whole place."""
    places = [_place(path) for path in paths]
    levels = zip(*(place[:-1] for place in places), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    names: dict[str, None] = {}
    for place in [*places, *map(_place, later)]:
        below = place[shared:] if place[:shared] == places[0][:shared] else place
        # A name that is not UTF-8 cannot be an id as it is.
        name = stem = "/".join(below).encode(errors="replace").decode()
        count = 1
        while name in names:
            count += 1
            name = f"{stem}#{count}"
        names[name] = None
    return list(names)


def _has_format(file_name: str, file_format: str) -> bool:
    its_format = _BY_EXTENSION.get(_extension(file_name))
    return its_format is not None and file_format in ("auto", its_format)


def _format_of(path: str) -> str:
    try:
        return _BY_EXTENSION[_extension(_place(path)[-1])]
    except KeyError:
        choices = ", ".join(FORMATS[1:])
        raise InputError(f"cannot tell the format of {path}: say --format ({choices})") from None


def _extension(file_name: str) -> str:
    path = Path(file_name.lower())
    return (Path(path.stem) if path.suffix in _COMPRESSED else path).suffix
