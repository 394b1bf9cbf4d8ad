"""Which columns a corpus has: the ones that are scored, and the types of those that are passed through.

Every part of a run must have one schema, and a resumed run the same one again, so it is fixed before the
first row is scored, from all of them: a sample would be cheaper, but the first row after it that did not fit
could no longer be written unchanged.

The types: Parquet columns keep theirs (dictionaries become their values); CSV columns are strings; a JSON
column is bool, int64, double (numbers that a double holds exactly), string, or a list of these, of lists of
these and so on. Sources that differ get the one type that holds the values of all of them (``unions.py``);
where only the values can tell whether it does, those of the Parquet files in question are read. Everything
else, objects, mixed types and lists in more than 8 levels included, becomes JSON text in a string column.

Of the columns that are not scored the first thousand are passed through as columns; all others go together
into one, ``other_columns``, an object in JSON text. So a corpus with a new JSON key in every row ends, and
memory has a bound.
"""

import base64
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.parquet_files import parquet_column_fits
from tuco_vllm.corpus.unions import holds_all, union
from tuco_vllm.errors import InputError
from tuco_vllm.records import output_schema
from tuco_vllm.score_requests import ALL_MORE

MOST_COLUMNS = 1000
"""So many columns are passed through, besides those that are scored or could have been."""

OTHERS = "other_columns"
"""The name of the column that all further ones go into."""

_COLUMNS_SAID = 20

_EXACT_IN_DOUBLE = 2**53
_LIST_LEVELS = 8
"""More lists in one another than this become JSON text: pyarrow cannot read what it writes of very many."""
_TYPES = (  # the first whose kinds cover all that a column holds
    ({"bool"}, pa.bool_()),
    ({"int", "int64"}, pa.int64()),
    ({"int", "float"}, pa.float64()),
    ({"string"}, pa.string()),
)


SCORE = ("auto", "prompt", "response")


@dataclass(frozen=True)
class Columns:
    """The names of the input columns that are scored and that identify rows."""

    prompt: str = "prompt"
    messages: str | None = "messages"
    """None scores prompts also where there are chats."""
    id: str | None = None
    response: str | None = "response"
    """None leaves it out, if there is such a column."""
    score: str = "auto"
    """One of ``SCORE``: responses where there are any, prompts only, or responses, and a row without one is
    an error."""

    @property
    def asked_for(self) -> frozenset[str | None]:
        """All these names."""
        response = None if self.score == "prompt" else self.response
        return frozenset((self.prompt, self.messages, self.id, response))


@dataclass(frozen=True)
class ExtraColumn:
    """An input column that is passed through to the output."""

    source: str | None
    """Its name in the input; None for the one that holds all columns without one of their own."""
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
    responses: bool
    """Whether rows have responses, or some may."""

    def without_name(self, name: str) -> "Survey":
        """The same with that name left to an output column of ours."""
        names, extras = {extra.name for extra in self.extras}, []
        for extra in self.extras:
            other = extra.name
            while other == name or (other != extra.name and other in names):
                other = f"input_{other}"
            extras.append(replace(extra, name=other))
        return replace(self, extras=tuple(extras))

    def to_json(self) -> dict[str, Any]:
        """As JSON values. Arrow types have no text that could be read back: they are a schema in base64."""
        types = pa.schema([pa.field(extra.name, extra.type) for extra in self.extras])
        return {
            "rows": self.rows,
            "responses": self.responses,
            "extras": [
                {"source": extra.source, "name": extra.name, "as_json": extra.as_json}
                for extra in self.extras
            ],
            "types": base64.b64encode(types.serialize()).decode(),
        }

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> "Survey":
        """What ``to_json`` wrote."""
        types = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(written["types"])))
        extras = (
            ExtraColumn(type=each.type, **extra) for extra, each in zip(written["extras"], types, strict=True)
        )
        return cls(written["rows"], tuple(extras), written["responses"])


@dataclass
class _Column:
    """What is known of an input column."""

    kinds: set[str] = field(default_factory=set)
    """Of its values in CSV and JSON."""
    types: dict[pa.DataType, list[InputFile]] = field(default_factory=dict)
    """Its types in Parquet, and the files that have it so."""


class FoundColumns:
    """The columns of some input files in order of appearance, up to those for which there is no room."""

    def __init__(self, besides: AbstractSet[str | None]) -> None:
        """For the names ``besides`` there is always room."""
        self.has_others = False
        """Whether there were more columns than there is room for."""
        self._columns: dict[str, _Column] = {}
        self._besides, self._room = besides, MOST_COLUMNS

    @property
    def names(self) -> AbstractSet[str]:
        """Of all columns that there was room for, in order."""
        return self._columns.keys()

    def add_record(self, values: Mapping[str, Any]) -> None:
        """Add what a record of CSV or JSON has."""
        for name, value in values.items():
            if (column := self._column(name)) is not None:
                column.kinds.update(_kinds_of(value))

    def add_schema(self, file: InputFile, schema: pa.Schema) -> None:
        """Add what a Parquet file has."""
        for each in schema:
            if (column := self._column(each.name)) is not None:
                arrow = each.type.value_type if pa.types.is_dictionary(each.type) else each.type
                column.types.setdefault(arrow, []).append(file)

    def add(self, other: "FoundColumns") -> None:
        """Add what was found in files that come later."""
        self.has_others = self.has_others or other.has_others
        for name, theirs in other._columns.items():
            if (column := self._column(name)) is not None:
                column.kinds |= theirs.kinds
                for arrow, files in theirs.types.items():
                    column.types.setdefault(arrow, []).extend(files)

    def check(self, file: InputFile, columns: Columns) -> None:
        """InputError where these are the columns of a file and those asked for are not among them."""
        if not self._columns:  # no rows, or broken ones
            return
        names = list(self._columns)
        said = ", ".join(names[:_COLUMNS_SAID]) + (", ..." if len(names) > _COLUMNS_SAID else "")
        has = f"{file.path} has the columns {said}"
        if columns.prompt not in names and columns.messages not in names:
            wanted = " or ".join(
                repr(name) for name in (columns.prompt, columns.messages) if name is not None
            )
            raise InputError(f"no column {wanted}: {has}; name one with --prompt-column or --messages-column")
        asked = [(columns.prompt, Columns.prompt, "prompt"), (columns.messages, Columns.messages, "messages")]
        asked.append((columns.response, Columns.response, "response"))
        for name, default, option in [*asked, (columns.id, None, "id")]:
            if name not in (None, default, *names):
                raise InputError(f"no column {name!r} (--{option}-column): {has}")

    def survey(self, columns: Columns, rows: int, turns: bool) -> Survey:
        """What a corpus holds that has these columns. ``turns``: whether any chat ends with a response."""
        # A corpus with chats may carry an unused prompt column: that one is not lost.
        scored = {columns.id, columns.messages if columns.messages in self._columns else columns.prompt}
        responses = False
        if columns.score != "prompt":
            scored.add(columns.response)
            responses = turns or columns.response in self._columns or columns.score == "response"
        passed = {name: _type_of(name, each) for name, each in self._columns.items() if name not in scored}
        return Survey(rows, tuple(_extras(passed, self.has_others, responses)), responses)

    def _column(self, name: str) -> _Column | None:
        """What is known of the column of that name, to be added to; None where there is no room for it."""
        column = self._columns.get(name)
        if column is None:
            if name not in self._besides:
                if not self._room:
                    self.has_others = True
                    return None
                self._room -= 1
            column = self._columns[name] = _Column()
        return column


def _type_of(name: str, column: _Column) -> pa.DataType | None:
    """The type that holds whatever the sources have in this column; None where only JSON text does."""
    arrow = _json_type(column.kinds)
    united = None if arrow is None else union([arrow, *column.types])
    if united is None:
        return None
    if not holds_all(united, arrow) and any(kind.endswith("int64") for kind in column.kinds):
        return None
    for its_type, files in column.types.items():
        if holds_all(united, its_type):
            continue
        if not all(parquet_column_fits(file, name, united) for file in files):
            return None
    return pa.string() if united == pa.null() else united


def _extras(
    passed: Mapping[str, pa.DataType | None], has_others: bool, responses: bool
) -> Iterator[ExtraColumn]:
    taken = {*output_schema(responses=responses, more=ALL_MORE).names}
    sources: list[tuple[str | None, pa.DataType | None]] = [*passed.items()]
    for source, arrow in [*sources, (None, None)] if has_others else sources:
        name = OTHERS if source is None else source
        while name in taken or (name != source and name in passed):
            name = f"input_{name}"
        taken.add(name)
        yield ExtraColumn(source, name, pa.string() if arrow is None else arrow, as_json=arrow is None)


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
