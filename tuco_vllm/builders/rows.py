"""Files of prompts in, JSONL out: what all builders share.

A row is a dict of column -> value. CSV cells are texts whatever they say ("NA", "None"); JSONL is split at
"\\n" only. A file that cannot be read as what it is ends it: a prompt set with a hole is no prompt set.
"""

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError, check_text

Row = dict[str, Any]

_LONGEST_CELL = 1 << 26


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .csv or .jsonl file, which may be .gz, each with its ``_place``, for messages and ids.

    Raises InputError, which names file and line.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in (".csv", ".jsonl"):
        raise InputError(f"{path} is neither .csv nor .jsonl (nor such a file with .gz)")
    text = _text(path)
    if kind == ".jsonl":
        for number, line in enumerate(text.split("\n")):
            if line.strip():
                yield _object(line, f"{path.name}:{number}") | {"_place": f"{path.name}:{number}"}
        return
    csv.field_size_limit(_LONGEST_CELL)
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for number, cells in enumerate(table):
            if None in cells or None in cells.values():
                raise InputError(f"{path.name}:{number} has not as many fields as the header")
            yield {**cells, "_place": f"{path.name}:{number}"}
    except csv.Error as error:
        raise InputError(f"{path}, line {table.line_num}: {error}") from error


def read_documents(path: Path, separator: str | None, column: str) -> Iterator[tuple[str, str]]:
    """(id, text) of the documents in a text file, of which ``separator`` is a line between two; or, of a .csv
    or .jsonl file, of each row's ``column``."""
    if Path(path.name.removesuffix(".gz")).suffix in (".csv", ".jsonl"):
        for row in read_rows(path):
            yield row["_place"], text_in(row, column)
        return
    text = _text(path)
    parts = [text] if separator is None else re.split(rf"(?m)^{re.escape(separator)}\r?$\n?", text)
    yield from ((f"{path.name}:{number}", part) for number, part in enumerate(parts))


def text_in(row: Row, column: str) -> str:
    """A row's cell, which has to be a text with something in it. Raises InputError."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        told = "there is none" if column not in row else f"it is {value!r:.40}"
        raise InputError(
            f"{row['_place']} needs a text in column {column!r:.60}, and {told}: name the column"
        )
    try:
        check_text(value, f"text in column {column!r:.60}")
    except PromptError as error:
        raise InputError(f"{row['_place']}: {error}: mend the row, or leave it out") from error
    return value


def prompt_in(row: Row, column: str) -> str:
    """A row's prompt: its text or, as builders write them, a chat of one user turn. Raises InputError."""
    turns = row.get("messages")
    if row.get(column) is None and isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], dict):
        return text_in({"content": turns[0].get("content"), "_place": row["_place"]}, "content")
    return text_in(row, column)


def id_in(row: Row, column: str | None) -> str:
    """A row's own id, or where it stands."""
    return str(row[column]) if column is not None and row.get(column) is not None else str(row["_place"])


def asked(text: str, *, raw: bool) -> Row:
    """A prompt as a chat of one turn, or raw."""
    return {"prompt": text} if raw else {"messages": [{"role": "user", "content": text}]}


def write_rows(rows: Iterable[Row], out: Path, *, overwrite: bool) -> int:
    """Write JSONL, all or nothing. Returns the number of rows.

    InputError where there are none, or where an id repeats: what is scored could not be told apart.
    """
    expect_free(out, overwrite=overwrite)
    known: set[str] = set()
    count, scratch = 0, out.with_name(f".{out.name[:100]}.{uuid4().hex}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                if row["id"] in known:
                    raise InputError(
                        f"id {row['id']!r:.80} is there twice: name another --id-column, or none, and give "
                        "files of different names"
                    )
                known.add(row["id"])
                file.write(json.dumps(row, ensure_ascii=True) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise InputError("there is nothing to write: the inputs give no rows of this kind")
        os.replace(scratch, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return count


def expect_free(out: Path, *, overwrite: bool) -> None:
    """Raises InputError where ``out`` is there and may not be replaced."""
    if out.exists() and not out.is_file():
        raise InputError(f"{out} is {'a folder' if out.is_dir() else 'a pipe or a device'}: name a file")
    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already: --overwrite replaces it")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _object(line: str, place: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{place} is no object")
    return value
