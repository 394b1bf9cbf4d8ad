"""A unit's scored chunks -> one Parquet file, whose footer proves that it is whole and whose, and its counts.

Row groups go to disk as they fill, so memory holds one row group, whatever the size of a part.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuco_vllm.corpus.chunks import SCORED_COLUMNS, split
from tuco_vllm.corpus.columns import ExtraColumn
from tuco_vllm.corpus.unit import Unit, UnitDone
from tuco_vllm.records import output_schema
from tuco_vllm.score_requests import NO_MORE, MoreScores

_ROW_GROUP = 4096
_ROW_GROUP_BYTES = 64 << 20

_TAIL = 1 << 16
"""So much of a part's end is read at once: most footers are shorter."""


class PartWriter:
    """Writes a unit's chunks, in order, into ``file``. A context manager: ``close`` makes the file whole, and
    what is left without it is not.

    Args:
        unit: whose rows these are.
        extras: the input columns that follow the fixed ones.
        metadata: goes into the file; ``tuco.job`` is the job's id. Added are ``tuco.unit``,
            ``tuco.first_row``, ``tuco.rows``, the counts, ``tuco.template_applied``: whether a chat
            template made any prompt, and ``tuco.templated_rows``: of how many scored rows it did.
        layers, prompt, responses, more, several: which columns are written.

    ``write`` and ``close`` raise OSError when the file system refuses.
    """

    def __init__(
        self,
        file: Path,
        unit: Unit,
        extras: Sequence[ExtraColumn],
        metadata: Mapping[str, str],
        *,
        layers: bool = True,
        prompt: bool = True,
        responses: bool = False,
        more: MoreScores = NO_MORE,
        several: bool = False,
    ) -> None:
        self._path, self._unit = file, unit
        fixed = output_schema(layers=layers, prompt=prompt, responses=responses, more=more, several=several)
        fields = [*fixed, *(pa.field(extra.name, extra.type) for extra in extras)]
        self._schema = pa.schema(fields, metadata={**metadata, **_named(_place(unit))})
        there = output_schema(layers=layers, prompt=prompt, responses=True, more=more, several=several).names
        # By place: an input column may have the name of one that is not written.
        self._written = [place for place, name in enumerate(there) if name in fixed.names]
        self._written += range(len(there), len(there) + len(extras))
        self._group: list[pa.Table] = []
        self._grouped = self._grouped_bytes = 0
        self._rows = self._errors = self._prompt_tokens = 0
        self._set_aside: list[int] = []
        self._templated, self._templated_rows = False, 0
        self._file = file.open("wb")
        self._parquet = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._parquet, self._file):  # on a full disk closing fails as well
            with suppress(OSError, ValueError, pa.ArrowException):
                each.close()

    def write(self, chunk: pa.Table) -> None:
        """Take a scored chunk."""
        (templated, set_aside), rows = split(chunk, SCORED_COLUMNS)
        self._templated = self._templated or bool(pc.any(templated).as_py())
        self._templated_rows += pc.sum(pc.and_(templated, chunk["error"].is_null())).as_py() or 0
        first = self._unit.row + self._rows
        self._set_aside += [first + place for place in pc.indices_nonzero(set_aside).to_pylist()]
        self._rows += chunk.num_rows
        self._errors += chunk.num_rows - chunk["error"].null_count
        self._prompt_tokens += pc.sum(chunk["prompt_tokens"]).as_py() or 0
        self._group.append(rows.select(self._written))
        self._grouped += chunk.num_rows
        self._grouped_bytes += rows.nbytes
        if self._grouped >= _ROW_GROUP or self._grouped_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> UnitDone:
        """Make the file whole."""
        unit = self._unit
        if self._rows != unit.rows:  # one lost or done twice; such a part may not be seen
            raise RuntimeError(f"unit {unit.number} has {unit.rows} rows, and {self._rows} came out of it")
        self._flush()
        counts = {"errors": self._errors, "prompt_tokens": self._prompt_tokens, "set_aside": self._set_aside}
        templated = {"template_applied": self._templated, "templated_rows": self._templated_rows}
        self._parquet.add_key_value_metadata(_named({**counts, **templated}))
        self._parquet.close()
        self._file.close()
        return replace(self.done, size=self._path.stat().st_size)

    @property
    def done(self) -> UnitDone:
        """What has come so far. The ``size`` is known when the file is whole."""
        counts = self._errors, self._prompt_tokens
        return UnitDone(self._unit.number, self._rows, *counts, 0, tuple(self._set_aside))

    def _flush(self) -> None:
        if self._group:
            self._parquet.write_table(pa.concat_tables(self._group).cast(self._schema))
        self._group, self._grouped, self._grouped_bytes = [], 0, 0


def proof_of(file: Any, size: int, unit: Unit, job: str) -> UnitDone | None:
    """What a part of ``size`` bytes says of itself, by its footer; None where it is torn, or not what
    this unit becomes in this job.

    ``file`` can be read and sought in. What that raises is raised: a store without an answer proves nothing.
    """
    end = _end(file, size)
    try:
        footer = pq.read_metadata(pa.BufferReader(end))
        said = {name.decode(): value.decode() for name, value in (footer.metadata or {}).items()}
        counts = [json.loads(said[f"tuco.{name}"]) for name in ("errors", "prompt_tokens", "set_aside")]
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    expected = {"tuco.job": job, **_named(_place(unit))}
    if footer.num_rows != unit.rows or any(said.get(name) != value for name, value in expected.items()):
        return None
    errors, tokens, set_aside = counts
    return UnitDone(unit.number, unit.rows, errors, tokens, size, tuple(set_aside))


def _place(unit: Unit) -> dict[str, int]:
    return {"unit": unit.number, "first_row": unit.row, "rows": unit.rows}


def _named(values: Mapping[str, Any]) -> dict[str, str]:
    """A file's metadata: these values in JSON."""
    return {f"tuco.{name}": json.dumps(value) for name, value in values.items()}


def _end(file: Any, size: int) -> bytes:
    """A Parquet file from its footer on, or from before it: all that reading the footer needs."""
    file.seek(max(0, size - _TAIL))
    tail = bytes(file.read(_TAIL))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < length <= size:
        file.seek(size - length)
        tail = bytes(file.read(length))
    return tail
