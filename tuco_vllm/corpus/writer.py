"""Scored rows -> part-00000.parquet, part-00001.parquet, ... in input order, each visible only when whole.

Row groups go to disk as they fill, so memory holds one row group, whatever the size of a part.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.corpus.columns import ExtraColumn
from tuco_vllm.corpus.publish import OutputError, hidden, publish, refusals
from tuco_vllm.errors import InputError
from tuco_vllm.records import LAYERS, PART, SCALARS, ScoredRow, output_schema

_ROW_GROUP = 4096


class PartWriter:
    """Writes rows into parts of ``rows_per_file`` rows; the last part, or an early commit, may hold fewer.

    Args:
        out: the output directory, which exists.
        extras: the input columns that follow the fixed ones.
        metadata: goes into every file, with ``tuco.template_applied``: whether a chat template made any
            prompt of that file.
        first_part: the number of the first part to write.
        layers, prompt: whether those columns are written.

    ``rows_committed`` counts the rows in the parts that this writer has published.

    ``write`` and ``commit`` raise OutputError when the file system refuses.
    """

    def __init__(
        self,
        out: Path,
        extras: Sequence[ExtraColumn],
        metadata: Mapping[str, str],
        *,
        rows_per_file: int,
        first_part: int = 0,
        layers: bool = True,
        prompt: bool = True,
    ) -> None:
        self._out, self._extras, self._rows_per_file = out, extras, rows_per_file
        fields = [*output_schema(layers=layers, prompt=prompt)]
        fields += [pa.field(extra.name, extra.type) for extra in extras]
        self._schema = pa.schema(fields, metadata=dict(metadata))
        self._layers, self._prompt = layers, prompt
        self._part = first_part
        self.rows_committed = 0
        self._start_part()

    def write(self, row: ScoredRow) -> bool:
        """Take one row. Returns whether that completed and committed a part."""
        self._whole = False
        self._group.append(row)
        self._rows += 1
        if full := self._rows == self._rows_per_file:
            self.commit()
        elif len(self._group) == _ROW_GROUP:
            self._flush()
        self._whole = True
        return full

    def commit(self, *, even_empty: bool = False) -> None:
        """Make the rows taken so far a part of its own, if there are any."""
        if self._rows == 0 and not even_empty:
            return
        self._whole = False
        self._flush()
        path = self._out / PART.format(self._part)
        with refusals(path):
            file, parquet = self._opened()
            parquet.add_key_value_metadata({"tuco.template_applied": "true" if self._templated else "false"})
            parquet.close()
        publish(file, path)
        self.rows_committed += self._rows
        self._part += 1
        self._start_part()

    def rescue(self) -> None:
        """After an error or Ctrl-C: commit the rows taken so far.

        Not if the stop came in the midst of a write: nobody knows then which rows are in the file, and
        the part at hand is dropped.
        """
        if self._whole:
            with contextlib.suppress(OutputError):
                self.commit()
        if not self._whole:
            self._drop()

    def _start_part(self) -> None:
        self._group: list[ScoredRow] = []
        self._rows = 0
        self._templated = False
        self._open: tuple[IO[bytes], pq.ParquetWriter] | None = None
        self._whole = True

    def _drop(self) -> None:
        if self._open is not None:
            for each in reversed(self._open):  # on a full disk closing fails as well
                with contextlib.suppress(OSError, ValueError, pa.ArrowException):
                    each.close()
        with contextlib.suppress(OSError):
            hidden(self._out / PART.format(self._part)).unlink(missing_ok=True)
        self._start_part()

    def _opened(self) -> tuple[IO[bytes], pq.ParquetWriter]:
        if self._open is None:
            file = hidden(self._out / PART.format(self._part)).open("wb")
            self._open = file, pq.ParquetWriter(file, self._schema, compression="zstd")
        return self._open

    def _flush(self) -> None:
        table = pa.table(self._arrays(), schema=self._schema)
        self._templated = self._templated or any(row.templated for row in self._group)
        with refusals(self._out / PART.format(self._part)):
            self._opened()[1].write_table(table)
        self._group = []

    def _arrays(self) -> list[pa.Array]:
        rows = self._group
        columns: list[list[Any]] = [[row.id for row in rows]]
        if self._prompt:
            columns.append([row.prompt for row in rows])
        columns.append([row.prompt_tokens for row in rows])
        for name in (*SCALARS, *(LAYERS if self._layers else ())):
            columns.append([getattr(row.score, name) if row.score else None for row in rows])
        columns.append([row.error for row in rows])
        fixed = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=False)]
        return fixed + [_extra_array(extra, rows) for extra in self._extras]


def _extra_array(column: ExtraColumn, rows: Sequence[ScoredRow]) -> pa.Array:
    values = [row.extra.get(column.source) for row in rows]
    try:
        return pa.array([_typed(value, column) for value in values], column.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        # Types were taken from these very files, so this is no bad row.
        raise InputError(
            f"column {column.source!r} no longer fits {column.type}: the input changed while it was read"
        ) from error


def _typed(value: Any, column: ExtraColumn) -> Any:
    if value is None:
        return None
    if column.as_json:
        plain = value.as_py() if isinstance(value, pa.Scalar) else value
        return json.dumps(plain, ensure_ascii=False, default=str)
    if isinstance(value, pa.Scalar) and value.type != column.type:
        return value.cast(column.type)
    return value
