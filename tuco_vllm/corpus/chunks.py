"""Chunks: the Arrow tables, up to some thousand rows each, in which a corpus goes through the pipeline.

source chunk   id, prompt, messages and response (JSON text), error, then the input's other columns
token chunk    id, prompt, token_ids, response, response_ids, templated, error, then the other columns
scored chunk   templated, set_aside (whether engines died on the row), then the columns of an output file,
               those of responses among them (the writer leaves them out where there are none)

Their own columns come first and are taken by place: an input column may have any name.

A chunk is the unit of work that is handed from process to process and tried again after a death; it is small
so that several engines share even a small corpus, and bounded in bytes so that memory is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tuco_vllm.corpus.columns import Columns, ExtraColumn
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.rows import SourceRow, as_text, source_rows
from tuco_vllm.errors import InputError

CHUNK_ROWS = 2048
CHUNK_CHARACTERS = 1 << 17
"""A chunk ends after so many rows, or with the row that brings it to so many characters (of what is no text:
bytes): some 30,000 tokens, a second of an H200 and a pair of 8B models. More would move the progress line and
balance engines less often, less would make the driver pay Ray's milliseconds for each chunk more often."""

SOURCE_COLUMNS = ("id", "prompt", "messages", "response", "error")
TOKEN_COLUMNS = ("id", "prompt", "token_ids", "response", "response_ids", "templated", "error")
SCORED_COLUMNS = ("templated", "set_aside")


@dataclass(frozen=True)
class Source:
    """The part of a corpus that is still to be scored: rows ``skip`` to ``limit`` of the files, in order."""

    files: tuple[InputFile, ...]
    columns: Columns
    extras: tuple[ExtraColumn, ...]
    skip: int = 0
    limit: int | None = None

    def chunks(self) -> Iterator[pa.Table]:
        """Source chunks in reading order, the same each time. Raises InputError as the readers do."""
        held: list[SourceRow] = []
        size = 0
        for row in source_rows(self.files, self.columns, self.extras, skip=self.skip, limit=self.limit):
            held.append(row)
            size += row.size
            if len(held) == CHUNK_ROWS or size >= CHUNK_CHARACTERS:
                yield self._table(held)
                held, size = [], 0
        if held:
            yield self._table(held)

    def _table(self, rows: Sequence[SourceRow]) -> pa.Table:
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
        arrays = [_extra_array(extra, rows) for extra in self.extras]
        return join(own, pa.table(arrays, names=[extra.name for extra in self.extras]))


@dataclass(frozen=True)
class ScoredChunk:
    """Rows that are done, in reading order, and what the engine that scored them has done so far."""

    first: int
    """The number of its first row in the corpus."""
    table: pa.Table
    engine: int
    process: str
    """HOST:PID of the engine's actor; the counts below begin anew with every process."""
    starts: int
    busy_seconds: float
    ready_seconds: float
    """Since its engine was ready: the time in which it could have been busy."""


def split(chunk: pa.Table, own: Sequence[str]) -> tuple[list[pa.ChunkedArray], pa.Table]:
    """A chunk's columns ``own``, which come first, and the table of the others."""
    return chunk.columns[: len(own)], chunk.select(range(len(own), chunk.num_columns))


def join(own: Mapping[str, pa.Array], others: pa.Table) -> pa.Table:
    """The chunk of these columns."""
    return pa.table([*own.values(), *others.columns], names=[*own, *others.column_names])


def to_bytes(chunk: pa.Table) -> bytes:
    """A chunk as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, chunk.schema) as stream:
        stream.write_table(chunk)
    return sink.getvalue().to_pybytes()


def from_bytes(data: bytes) -> pa.Table:
    """The chunk that ``to_bytes`` wrote."""
    return pa.ipc.open_stream(data).read_all()


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
