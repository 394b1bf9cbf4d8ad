"""DuckDB for tables and reports: in a file of its own, in bounded memory, filled from batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tuco_vllm.errors import TucoError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EXACT_ROWS = 20_000_000
"""Up to so many scores quantiles are exact (DuckDB holds them: 160 MB a column), of more a sketch's."""

MEMORY = "1GB"
"""What DuckDB may hold; the rest goes to temporary files."""


@contextmanager
def scratch_database(memory: str = MEMORY) -> Iterator["DuckDBPyConnection"]:
    """A database in a temporary folder, gone afterwards. Raises TucoError where there is no room for it."""
    import duckdb  # 0.1 s, for those who read rows

    with TemporaryDirectory(prefix="tuco-") as folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory,
            "temp_directory": f"{folder}/spilled",
            "threads": 4,
        }
        try:
            with duckdb.connect(f"{folder}/rows.db", config=settings) as database:
                database.execute("SET enable_progress_bar = false")
                yield database
        except duckdb.Error as error:
            said = " ".join(str(error).split())[:300]
            raise TucoError(f"DuckDB, in {gettempdir()} (TMPDIR names another folder): {said}") from error


def fill(
    database: "DuckDBPyConnection",
    table: str,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    kept: str = "*",
) -> None:
    """Make ``table`` of ``batches``, of what SQL selects of them. What their reading raises is raised: DuckDB
    would make an error of its own of it."""
    failed: list[Exception] = []

    def read() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            failed.append(error)

    database.register("batches", pa.RecordBatchReader.from_batches(schema, read()))
    database.execute(f"CREATE TABLE {table} AS SELECT {kept} FROM batches")
    database.unregister("batches")
    if failed:
        raise failed[0]


def quantiles(column: str, shares: tuple[float, ...], exact: bool) -> str:
    """SQL for a column's quantiles at ``shares``, as a list: nearest rank, or a t-digest's."""
    return f"{'quantile_disc' if exact else 'approx_quantile'}({column}, {list(shares)})"


def finite(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of numbers as float64, with null for whatever is no finite number."""
    numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return pa.array(numbers, mask=~np.isfinite(numbers))
