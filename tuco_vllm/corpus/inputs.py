"""Which files a corpus consists of: arguments (files, globs, directories) -> files in a fixed order."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuco_vllm.errors import InputError

FORMATS = ("auto", "jsonl", "csv", "parquet", "txt")
_BY_EXTENSION = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".txt": "txt"}
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class InputFile:
    """One file of the corpus, as it was when the job looked at it."""

    path: Path
    name: str
    """Its path relative to the inputs' common root, with slashes: the stem of its rows' ids."""
    format: str
    size: int
    mtime_ns: int

    @property
    def compressed(self) -> bool:
        """Whether its extension says gzip or zstandard."""
        return self.path.suffix in _COMPRESSED


def find_inputs(arguments: Sequence[str], file_format: str = "auto", *, out: Path) -> list[InputFile]:
    """The corpus in reading order: the arguments' order, sorted by path inside a glob or a directory.

    A file named twice counts once. Directories are searched to any depth for files whose extension tells
    their format; hidden files, names that begin with ``_`` and whatever lies under ``out`` are left out.
    Raises InputError for an argument without files and for a format that the extension does not tell.
    """
    out = Path(os.path.abspath(out))
    paths: dict[Path, str] = {}
    for argument in arguments:
        for path in _expand(argument, file_format, out):
            paths.setdefault(path, file_format if file_format != "auto" else _format_of(path))
    root = os.path.commonpath([path.parent for path in paths])
    files = []
    for path, its_format in paths.items():
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        # A name that is not UTF-8 cannot be an id as it is.
        name = path.relative_to(root).as_posix().encode(errors="replace").decode()
        files.append(InputFile(path, name, its_format, stat.st_size, stat.st_mtime_ns))
    return files


def _expand(argument: str, file_format: str, out: Path) -> Iterator[Path]:
    path = Path(os.path.abspath(argument))
    if path.is_file():
        yield path
        return
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _wanted(file, path, file_format)]
        wanted = ".jsonl, .csv, .parquet or .txt" if file_format == "auto" else file_format
        missing = f"{argument} holds no {wanted} file"
    elif glob.has_magic(argument):
        matches = (Path(os.path.abspath(match)) for match in sorted(glob.glob(argument, recursive=True)))
        found = [file for file in matches if file.is_file()]
        missing = f"no file matches {argument}"
    else:
        raise InputError(f"no such input: {argument}")
    found = [file for file in found if out not in file.parents]
    if not found:
        raise InputError(missing)
    yield from found


def _wanted(file: Path, directory: Path, file_format: str) -> bool:
    if any(part.startswith((".", "_")) for part in file.relative_to(directory).parts) or not file.is_file():
        return False
    its_format = _BY_EXTENSION.get(_extension(file))
    return its_format is not None and file_format in ("auto", its_format)


def _format_of(path: Path) -> str:
    try:
        return _BY_EXTENSION[_extension(path)]
    except KeyError:
        choices = ", ".join(FORMATS[1:])
        raise InputError(f"cannot tell the format of {path}: say --format ({choices})") from None


def _extension(path: Path) -> str:
    return (Path(path.stem) if path.suffix in _COMPRESSED else path).suffix.lower()
