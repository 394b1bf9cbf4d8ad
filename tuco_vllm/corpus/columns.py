"""Which columns a corpus has: the ones that are scored, and the types of those that are passed through.

Every part of a run must have one schema, and a resumed run the same one again, so it is fixed before the
first row is scored: `survey` reads the inputs once (of Parquet only the footers). A sample would be cheaper,
but the first row after it that did not fit could no longer be written unchanged. Parsing costs little beside
scoring, and it gives the exact number of rows for the ETA.

The types: Parquet columns keep theirs (dictionaries become their values); CSV columns are strings; a JSON
column is bool, int64, double (numbers that a double holds exactly), string, or a list of these, of lists of
these and so on. Everything else, objects, mixed types and lists in more than 8 levels included, becomes JSON
text in a string column.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.readers import parquet_layout, read_records
from tuco_vllm.errors import InputError
from tuco_vllm.records import output_schema

_EXACT_IN_DOUBLE = 2**53
_LIST_LEVELS = 8
"""More lists in one another than this become JSON text: pyarrow cannot read what it writes of very many."""
_TYPES = (  # the first whose kinds cover all that a column holds
    ({"bool"}, pa.bool_()),
    ({"int", "int64"}, pa.int64()),
    ({"int", "float"}, pa.float64()),
    ({"string"}, pa.string()),
)


@dataclass(frozen=True)
class Columns:
    """The names of the input columns that are scored and that identify rows."""

    prompt: str = "prompt"
    messages: str | None = "messages"
    """None scores prompts also where there are chats."""
    id: str | None = None


@dataclass(frozen=True)
class ExtraColumn:
    """An input column that is passed through to the output."""

    source: str
    name: str
    """Its name in the output: the source's, with ``input_`` before it where that name is taken."""
    type: pa.DataType
    as_json: bool
    """Whether values are written as JSON text."""


@dataclass(frozen=True)
class Survey:
    """What the inputs hold."""

    rows: int
    extras: tuple[ExtraColumn, ...]


def survey(files: Sequence[InputFile], columns: Columns, limit: int | None = None) -> Survey:
    """Read the first ``limit`` rows' columns. Raises InputError where a file lacks the columns asked for."""
    rows = 0
    kinds: dict[str, set[str]] = {}  # of CSV and JSON, in order of appearance
    types: dict[str, list[pa.DataType]] = {}  # of Parquet
    for file in files:
        left = None if limit is None else limit - rows
        seen: dict[str, None] = {}
        if file.format == "parquet":
            count, schema = parquet_layout(file)
            rows += count if left is None else min(count, left)
            for field in schema:
                seen[field.name] = None
                kinds.setdefault(field.name, set())
                types.setdefault(field.name, []).append(field.type)
        else:
            for record in islice(read_records(file, prompt_column=columns.prompt), left):
                rows += 1
                for name, value in record.columns.items():
                    seen[name] = None
                    kinds.setdefault(name, set()).update(_kinds_of(value))
        if seen:
            _check(file, columns, seen)
    # A corpus with chats may carry an unused prompt column: that one is not lost.
    scored = {columns.id, columns.messages if columns.messages in kinds else columns.prompt}
    passed = {name: [_json_type(kinds[name]), *types.get(name, ())] for name in kinds if name not in scored}
    return Survey(rows, tuple(_extras(passed)))


def _check(file: InputFile, columns: Columns, seen: Iterable[str]) -> None:
    names = list(seen)
    has = f"{file.path} has the columns {', '.join(names)}"
    if columns.prompt not in names and columns.messages not in names:
        wanted = " or ".join(repr(name) for name in (columns.prompt, columns.messages) if name is not None)
        raise InputError(f"no column {wanted}: {has}; name one with --prompt-column or --messages-column")
    asked = [(columns.prompt, Columns.prompt, "prompt"), (columns.messages, Columns.messages, "messages")]
    for name, default, option in [*asked, (columns.id, None, "id")]:
        if name not in (None, default, *names):
            raise InputError(f"no column {name!r} (--{option}-column): {has}")


def _extras(passed: dict[str, list[pa.DataType | None]]) -> Iterable[ExtraColumn]:
    taken = {*output_schema().names}
    for source, candidates in passed.items():
        name = source
        while name in taken or (name != source and name in passed):
            name = f"input_{name}"
        taken.add(name)
        merged = _merge(candidates)
        yield ExtraColumn(source, name, pa.string() if merged is None else merged, as_json=merged is None)


def _kinds_of(value: Any, levels: int = _LIST_LEVELS) -> set[str]:
    """The kinds of a JSON value; a list has its items' kinds, each after "list "."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"bool"}
    if isinstance(value, int):
        if abs(value) <= _EXACT_IN_DOUBLE:
            return {"int"}
        return {"int64"} if -(2**63) <= value < 2**63 else {"other"}
    if isinstance(value, float):
        return {"float"}
    if isinstance(value, str):
        return {"string"}
    if isinstance(value, list) and levels > 0:
        return {f"list {kind}" for item in value for kind in _kinds_of(item, levels - 1)} or {"list null"}
    return {"other"}


def _json_type(kinds: set[str]) -> pa.DataType | None:
    """The Arrow type that holds all these kinds unchanged; None where only JSON text does."""
    kinds = kinds - {"null"}
    if not kinds:
        return pa.null()
    if all(kind.startswith("list ") for kind in kinds):
        item = _json_type({kind.removeprefix("list ") for kind in kinds})
        return None if item is None else pa.list_(pa.string() if item == pa.null() else item)
    return next((arrow for allowed, arrow in _TYPES if kinds <= allowed), None)


def _merge(candidates: Sequence[pa.DataType | None]) -> pa.DataType | None:
    """One type for a column that several sources hold, if that loses nothing; else None."""
    merged = pa.null()
    for candidate in candidates:
        if candidate is None:
            return None
        if pa.types.is_dictionary(candidate):
            candidate = candidate.value_type
        if merged == pa.null():
            merged = candidate
        elif candidate not in (merged, pa.null()):
            both = (merged, candidate)
            signed = all(pa.types.is_signed_integer(each) for each in both)
            if not signed and not all(pa.types.is_floating(each) for each in both):
                return None
            merged = max(both, key=lambda each: each.bit_width)
    return pa.string() if merged == pa.null() else merged
