"""Inputs that can be read only once (pipes, /dev/stdin, devices) are copied into the output first.

A job reads its inputs twice, to fix the columns and to score, in other processes, and again when it is
resumed. What tells a copy from another is what it holds: the same command goes on where it stopped if it is
fed the same bytes again. The copy is gone when the run ends, however it ends but by a kill; what that leaves
goes with the next run.
"""

import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.errors import InputError
from tuco_vllm.records import STATE
from tuco_vllm.store import Store

_PREFIX = "input-"


@contextmanager
def copied(files: Sequence[InputFile], store: Store) -> Iterator[list[InputFile]]:
    """The files, each that is read ``once`` with a copy in the output. Raises InputError where that fails."""
    with ExitStack() as stack:
        yield [stack.enter_context(_copy(file, store)) if file.once else file for file in files]


def remove_other_copies(files: Sequence[InputFile], store: Store) -> None:
    """Remove what killed runs have left. For the one run that may write to ``store``."""
    if store.folder is None:
        return
    for path in (store.folder / STATE).glob(f"{_PREFIX}*"):
        if str(path) not in {file.copy for file in files}:
            path.unlink(missing_ok=True)


@contextmanager
def _copy(file: InputFile, store: Store) -> Iterator[InputFile]:
    if store.folder is None:
        raise InputError(
            f"{file.path} is read only once, and {store.where} cannot keep a copy: save it first"
        )
    folder = store.folder / STATE
    again = "to resume after an interruption, give the same command the same bytes again"
    print(f"tuco: {file.path} is read only once, so it is copied to {folder}; {again}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number, copy = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
    except OSError as error:
        raise InputError(f"cannot write to --out {store.where}: {error.strerror}") from error
    try:
        with open(number, "wb") as target:
            size, digest = _fill(target, file, folder)
        yield replace(file, size=size, version=f"sha256:{digest}", copy=copy)
    finally:
        Path(copy).unlink(missing_ok=True)


def _fill(copy: BinaryIO, file: InputFile, folder: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb") as source:
            while data := source.read(1 << 20):
                digest.update(data)
                copy.write(data)
        copy.flush()
        return copy.tell(), digest.hexdigest()
    except OSError as error:
        raise InputError(f"cannot copy {file.path} to {folder}: {error.strerror}") from error
