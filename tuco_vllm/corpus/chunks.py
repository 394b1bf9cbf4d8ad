"""Chunks: the Arrow tables, up to some thousand rows each, in which a unit's rows go through a worker.

source chunk   id, prompt, messages and response (JSON text), error, then the input's other columns
token chunk    id, prompt, token_ids, response, response_ids, templated, error, then the other columns
scored chunk   templated, set_aside (whether engines died on the row), then the columns of an output file,
               those of responses among them (a part leaves them out where there are none)

Their own columns come first and are taken by place: an input column may have any name.

A chunk is bounded in rows and bytes, so memory is too, whatever a unit holds.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from threading import Lock
from typing import Any

import pyarrow as pa

from tuco_vllm.corpus.columns import Columns, ExtraColumn
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.readers import Mark, RecordReader
from tuco_vllm.corpus.rows import SourceRow, as_text, source_row
from tuco_vllm.corpus.unit import Unit
from tuco_vllm.errors import InputError

CHUNK_ROWS = 2048
CHUNK_CHARACTERS = 1 << 17
"""A chunk ends after so many rows, or with the row that brings it to so many characters (of what is no text:
bytes): some 30,000 tokens, a second of an H200 and a pair of 8B models."""

_KEPT_OPEN = 2
"""Files, or places in one: a worker has two units in hand."""

SET_ASIDE = "the engine's process died twice on this row"
"""The error of a row that is not touched any more."""

SOURCE_COLUMNS = ("id", "prompt", "messages", "response", "error")
TOKEN_COLUMNS = ("id", "prompt", "token_ids", "response", "response_ids", "templated", "error")
SCORED_COLUMNS = ("templated", "set_aside")


class UnitReader:
    """Reads units, each as its chunks; several threads may do so at a time.

    Files stay open after a unit, so of a compressed one that is read unit by unit nothing is decompressed
    twice: what comes between two units is passed over.
    """

    def __init__(self, files: Sequence[InputFile], columns: Columns, extras: Sequence[ExtraColumn]) -> None:
        self._files, self._columns, self._extras = files, columns, extras
        self._kept: list[RecordReader] = []
        self._lock = Lock()

    def chunks(
        self,
        unit: Unit,
        *,
        chunk_rows: int | None = None,
        before: Callable[[int], object] | None = None,
        skip: AbstractSet[int] = frozenset(),
    ) -> Iterator[pa.Table]:
        """The unit's source chunks in reading order, the same each time.

        ``chunk_rows``: at most so many in each, instead of CHUNK_ROWS. ``before`` is told each row's place in
        the unit before the row is read; rows whose place is in ``skip`` are not parsed and get the error
        SET_ASIDE. Raises InputError as the readers do, and where the file is not what it was.
        """
        most = CHUNK_ROWS if chunk_rows is None else chunk_rows
        held: list[SourceRow] = []
        size = 0
        for row in self._rows(unit, before, skip):
            held.append(row)
            size += row.size
            if len(held) >= most or size >= CHUNK_CHARACTERS:
                yield _table(held, self._extras)
                held, size = [], 0
        if held:
            yield _table(held, self._extras)

    def _rows(
        self, unit: Unit, before: Callable[[int], object] | None, skip: AbstractSet[int]
    ) -> Iterator[SourceRow]:
        place, start = 0, Mark(unit.first, unit.offset)
        for number, rows in enumerate((unit.rows - sum(unit.more), *unit.more), unit.file):
            yield from self._rows_of(self._files[number], start, rows, place, before, skip)
            place, start = place + rows, Mark()

    def _rows_of(
        self,
        file: InputFile,
        start: Mark,
        rows: int,
        place: int,
        before: Callable[[int], object] | None,
        skip: AbstractSet[int],
    ) -> Iterator[SourceRow]:
        """A file's rows from ``start``; the first has that ``place`` in its unit."""
        passed = {extra.source for extra in self._extras}
        reader = self._taken(file, start.record)
        try:
            refused = {start.record + each - place: SET_ASIDE for each in skip}
            records = reader.read(start, refused)
            for record_number in range(start.record, start.record + rows):
                if before is not None:
                    before(place + record_number - start.record)
                if (record := next(records, None)) is None:
                    missing = f"it no longer has a record {record_number}"
                    raise InputError(
                        file.changed() or f"input {file.path} changed while it was read: {missing}"
                    )
                yield source_row(record, f"{file.name}:{record_number}", self._columns, passed)
        except BaseException:  # also where nobody wants the rest
            reader.close()
            raise
        self._keep(reader)
        if (reason := file.changed()) is not None:
            raise InputError(reason)

    def _taken(self, file: InputFile, first: int) -> RecordReader:
        """The reader of that file that is nearest, if any need not go back; nobody else has it then."""
        with self._lock:
            fit = [reader for reader in self._kept if reader.file == file and reader.next <= first]
            if fit:
                nearest = max(fit, key=lambda reader: reader.next)
                self._kept.remove(nearest)
                return nearest
        return RecordReader(file, self._columns.prompt)

    def _keep(self, reader: RecordReader) -> None:
        with self._lock:
            self._kept.append(reader)
            oldest = self._kept.pop(0) if len(self._kept) > _KEPT_OPEN else None
        if oldest is not None:
            oldest.close()


def split(chunk: pa.Table, own: Sequence[str]) -> tuple[list[pa.ChunkedArray], pa.Table]:
    """A chunk's columns ``own``, which come first, and the table of the others."""
    return chunk.columns[: len(own)], chunk.select(range(len(own), chunk.num_columns))


def join(own: Mapping[str, pa.Array], others: pa.Table) -> pa.Table:
    """The chunk of these columns."""
    return pa.table([*own.values(), *others.columns], names=[*own, *others.column_names])


def _table(rows: Sequence[SourceRow], extras: Sequence[ExtraColumn]) -> pa.Table:
    chats = [row.prompt is not None and not isinstance(row.prompt, str) for row in rows]
    columns = {
        "id": [row.id for row in rows],
        "prompt": [None if chat else row.prompt for row, chat in zip(rows, chats, strict=True)],
        "messages": [
            json.dumps(row.prompt, default=as_text) if chat else None
            for row, chat in zip(rows, chats, strict=True)
        ],
        "response": [None if row.response is None else json.dumps(row.response) for row in rows],
        "error": [row.error for row in rows],
    }
    own = {name: pa.array(columns[name], pa.string()) for name in SOURCE_COLUMNS}
    arrays = [_extra_array(extra, rows) for extra in extras]
    return join(own, pa.table(arrays, names=[extra.name for extra in extras]))


def _extra_array(column: ExtraColumn, rows: Sequence[SourceRow]) -> pa.Array:
    values = [row.extra.get(column.source) for row in rows]
    try:
        return _array([_typed(value, column) for value in values], column.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        # Types were taken from these very files, so this is no bad row.
        raise InputError(
            f"column {column.source!r} no longer fits {column.type}: the input changed while it was read"
        ) from error


def _array(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, arrow)
    except (pa.ArrowException, TypeError):
        # It cannot put scalars together that are extensions, or hold such or nulls.
        if not all(value is None or isinstance(value, pa.Scalar) for value in values):
            raise
        ones = [pa.nulls(1, arrow) if value is None else pa.repeat(value, 1) for value in values]
        return pa.concat_arrays(ones)


def _typed(value: Any, column: ExtraColumn) -> Any:
    if value is None:
        return None
    if column.as_json:
        return json.dumps(value, ensure_ascii=False, default=_python)
    if isinstance(value, pa.Scalar) and value.type != column.type:
        return value.cast(column.type)
    return value


def _python(value: Any) -> Any:
    """What JSON has no type for; where Python has no value (the year 10000, bad UTF-8), as Arrow shows it."""
    if not isinstance(value, pa.Scalar):
        return as_text(value)
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        if isinstance(value, pa.BinaryScalar):
            return value.as_buffer().to_pybytes().decode(errors="replace")
        whole = 2**31 - 1
        text: str = pa.repeat(value, 1).to_string(
            window=whole, container_window=whole, element_size_limit=whole, skip_new_lines=True
        )
        return text[1:-1] if text.startswith("[") else text  # an array of this one value
