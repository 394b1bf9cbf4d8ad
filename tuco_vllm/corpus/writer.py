"""Scored chunks -> part-00000.parquet, part-00001.parquet, ... in input order, each visible only when whole.

Row groups go to disk as they fill, so memory holds one row group, whatever the size of a part. A part that
has been open for some minutes is committed as it is: however slow the models, a death costs no more.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuco_vllm.corpus.chunks import SCORED_COLUMNS, split
from tuco_vllm.corpus.columns import ExtraColumn
from tuco_vllm.corpus.publish import OutputError, hidden, publish, refusals
from tuco_vllm.records import PART, output_schema
from tuco_vllm.score_requests import NO_MORE, MoreScores

_ROW_GROUP = 4096
_ROW_GROUP_BYTES = 64 << 20
_SECONDS_OPEN = 300.0


class PartWriter:
    """Writes chunks into parts of ``rows_per_file`` rows; the last part, or an early commit, may hold fewer.

    Args:
        out: the output directory, which exists.
        extras: the input columns that follow the fixed ones.
        metadata: goes into every file, with ``tuco.template_applied``: whether a chat template made any
            prompt of that file.
        first_part: the number of the first part to write.
        layers, prompt, responses, more: which columns are written.

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
        responses: bool = False,
        more: MoreScores = NO_MORE,
    ) -> None:
        self._out, self._rows_per_file = out, rows_per_file
        fixed = output_schema(layers=layers, prompt=prompt, responses=responses, more=more)
        fields = [*fixed, *(pa.field(extra.name, extra.type) for extra in extras)]
        self._schema = pa.schema(fields, metadata=dict(metadata))
        there = output_schema(layers=layers, prompt=prompt, responses=True, more=more).names
        # By place: an input column may have the name of one that is not written.
        self._written = [place for place, name in enumerate(there) if name in fixed.names]
        self._written += range(len(there), len(there) + len(extras))
        self._part = first_part
        self.rows_committed = 0
        self._start_part()

    def write(self, chunk: pa.Table) -> bool:
        """Take a scored chunk. Returns whether that committed a part."""
        committed = False
        while chunk.num_rows:
            self._whole = False
            piece = chunk.slice(0, self._rows_per_file - self._rows)
            chunk = chunk.slice(piece.num_rows)
            self._group.append(piece)
            self._grouped += piece.num_rows
            self._grouped_bytes += piece.nbytes
            self._rows += piece.num_rows
            slow = time.monotonic() - self._started > _SECONDS_OPEN
            if self._rows == self._rows_per_file or (slow and not chunk.num_rows):
                self.commit()
                committed = True
            elif self._grouped >= _ROW_GROUP or self._grouped_bytes >= _ROW_GROUP_BYTES:
                self._flush()
            self._whole = True
        return committed

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
        self._group: list[pa.Table] = []
        self._grouped = self._grouped_bytes = 0
        self._rows = 0
        self._started = time.monotonic()
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
        with refusals(self._out / PART.format(self._part)):
            parquet = self._opened()[1]
            if self._group:
                (templated, _), rows = split(pa.concat_tables(self._group), SCORED_COLUMNS)
                parquet.write_table(rows.select(self._written).cast(self._schema))
                self._templated = self._templated or bool(pc.any(templated).as_py())
        self._group, self._grouped, self._grouped_bytes = [], 0, 0
