"""What became of units, written down by the driver now and then, so that a resume need not read the parts.

Only a cache: an entry counts for a part that is there with the entry's size. So a piece that is torn,
unreadable or another job's is left out.
"""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.corpus.unit import UnitDone
from tuco_vllm.errors import InputError
from tuco_vllm.records import STATE
from tuco_vllm.store import Store

LOG = f"{STATE}/log"

_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64()) for name in ("unit", "rows", "errors", "prompt_tokens", "size")),
        pa.field("set_aside", pa.list_(pa.int64())),
    ]
)
_READERS = 16


def write_piece(store: Store, epoch: int, number: int, job: str, done: Iterable[UnitDone]) -> None:
    """Write a piece of an epoch's log; later entries of a unit replace earlier ones."""
    rows = [{name: getattr(each, name) for name in _SCHEMA.names} for each in done]
    table = pa.Table.from_pylist(rows, _SCHEMA.with_metadata({"tuco.job": job}))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    store.create(f"{LOG}/{epoch:04}-{number:06}.parquet", sink.getvalue())


def read_pieces(store: Store, job: str) -> tuple[dict[int, UnitDone], Sequence[str]]:
    """The entries of ``job`` by unit, and the names of all pieces."""
    names = sorted(store.list(LOG))
    with ThreadPoolExecutor(_READERS) as pool:
        pieces = pool.map(lambda name: _entries(store, name, job), names)
        return {done.unit: done for piece in pieces for done in piece}, names


def _entries(store: Store, name: str, job: str) -> list[UnitDone]:
    with suppress(InputError, pa.ArrowException, OSError, ValueError):
        table = pq.read_table(io.BytesIO(store.read(name) or b""))
        if table.schema.equals(_SCHEMA) and (table.schema.metadata or {}).get(b"tuco.job") == job.encode():
            *counts, set_aside = (column.to_pylist() for column in table.columns)
            return [UnitDone(*row) for row in zip(*counts, map(tuple, set_aside), strict=True)]
    return []
