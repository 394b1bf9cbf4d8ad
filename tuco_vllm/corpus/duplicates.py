"""Ids that occur more than once in a run's parts, found exactly, by DuckDB in bounded memory.

An id is the user's and may repeat: no row is dropped or renamed for that, but who joins on ids must know.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_IDS = pa.schema([pa.field("id", pa.string())])
_REPEATED = """
    SELECT count(*), sum(rows), min((-rows, id), 5)
    FROM (SELECT id, count(*) AS rows FROM ids WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1)
"""


@dataclass(frozen=True)
class Duplicates:
    """The repeated ids of a run."""

    ids: int = 0
    """Distinct ids that occur more than once."""
    rows: int = 0
    """Rows that carry them, the first ones included."""
    examples: tuple[tuple[str, int], ...] = ()
    """Up to five of them with their counts, the most frequent first."""


def find_duplicates(parts: Iterable[Any], folder: Path | None = None, *, memory: str = "1GB") -> Duplicates:
    """The ids that several rows of ``parts`` have in common; rows without an id are left out.

    ``parts`` are Parquet files, open or by path, read one after the other. What ``memory`` does not hold goes
    into ``folder``, or that for temporary files: of 100 million short ids 5 GB. Raises OSError or
    pyarrow.ArrowException for a part that cannot be read, duckdb.Error where there is no room.
    """
    import duckdb  # for those who have ids of their own

    failed: list[Exception] = []
    with (
        TemporaryDirectory(prefix="ids-", dir=folder) as spilled,
        duckdb.connect(config={"memory_limit": memory, "temp_directory": spilled, "threads": 4}) as database,
    ):
        database.register("ids", pa.RecordBatchReader.from_batches(_IDS, _ids(parts, failed)))
        found = database.execute(_REPEATED).fetchone()
    if failed or found is None:
        raise failed[0]
    count, rows, examples = found
    return Duplicates(count, rows or 0, tuple((name, -negative) for negative, name in examples or ()))


def _ids(parts: Iterable[Any], failed: list[Exception]) -> Iterator[pa.RecordBatch]:
    """What cannot be read ends it: DuckDB would make an error of its own of an exception."""
    try:
        for each in parts:
            with pq.ParquetFile(each) as part:
                for batch in part.iter_batches(columns=["id"]):
                    yield pa.record_batch(batch.columns, schema=_IDS)
    except Exception as error:
        failed.append(error)
