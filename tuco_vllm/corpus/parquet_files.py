"""Parquet inputs: a footer says what they hold, and reading begins at any row."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.corpus.content import check_unique, opened, reading
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.unions import fits

_BATCH_ROWS = 1024


@contextmanager
def parquet_file(file: InputFile) -> Iterator[pq.ParquetFile]:
    """The open file."""
    with ExitStack() as stack:
        source: Any = file.local_path
        if file.compressed or (file.remote and "::" in file.path):
            # Parquet is read from its end, what is packed from its start: unpack it to disk first.
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(opened(file)), source)
        elif file.remote:
            source = stack.enter_context(file.open())
        parquet = stack.enter_context(pq.ParquetFile(source))
        check_unique(parquet.schema_arrow.names)
        yield parquet


def parquet_rows(parquet: pq.ParquetFile, first: int) -> Iterator[tuple[Any, ...]]:
    """The values of each row from row number ``first`` on."""
    group, before = 0, first
    while group < parquet.num_row_groups and before >= parquet.metadata.row_group(group).num_rows:
        before -= parquet.metadata.row_group(group).num_rows
        group += 1
    groups = range(group, parquet.num_row_groups)
    for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups):
        skipped = min(before, batch.num_rows)
        before -= skipped
        yield from zip(*batch.slice(skipped).columns, strict=True)


def parquet_layout(file: InputFile) -> tuple[pa.Schema, list[tuple[int, int]]]:
    """A Parquet file's schema, and of each row group how many rows and bytes it has when decompressed."""
    with reading(file), parquet_file(file) as parquet:
        groups = map(parquet.metadata.row_group, range(parquet.num_row_groups))
        return parquet.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups]


def parquet_column(file: InputFile, name: str) -> Iterator[pa.Array]:
    """A column's values, some at a time."""
    with reading(file), parquet_file(file) as parquet:
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=[name]):
            yield batch.column(name)


def parquet_column_fits(file: InputFile, name: str, target: pa.DataType) -> bool:
    """Whether all values of a Parquet file's column can be cast to ``target`` unchanged: they are read."""
    return all(fits(column, target) for column in parquet_column(file, name))
