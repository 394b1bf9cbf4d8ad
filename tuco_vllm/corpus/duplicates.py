"""Ids that occur more than once in a run's parts, found exactly, in memory that does not grow with the rows.

An id is the user's and may repeat: no row is dropped or renamed for that, but who joins on ids must know.
The ids are read several times instead of being held:

1. Their 64-bit hashes, from the low end as many as fit, then the next ones, show which hashes repeat.
2. Only rows with such a hash are counted by their ids, again from the low end as many as fit, so that two
   ids with one hash are never taken for a duplicate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Hashes = npt.NDArray[np.uint64]

HASHES_HELD = 1 << 25
"""Hashes held at a time: 256 MiB, some 600 MiB while they are sorted and thinned out, which is little beside
an engine. Up to 33 million rows are read once, 100 million four times."""

IDS_HELD_BYTES = 128 << 20
"""Bytes of ids and their counts held at a time, of rows whose hash repeats; grouping takes a few times that.
Some 4 million short ids: 50 million ids, each there twice, are read some 35 times."""

_BATCH_ROWS = 1 << 16
_EXAMPLES = 5
_LAST_HASH = 2**64 - 1


@dataclass(frozen=True)
class Duplicates:
    """The repeated ids of a run."""

    ids: int = 0
    """Distinct ids that occur more than once."""
    rows: int = 0
    """Rows that carry them, the first ones included."""
    examples: tuple[tuple[str, int], ...] = ()
    """Up to five of them with their counts, the most frequent first."""


def hash_ids(ids: pa.BinaryArray) -> Hashes:
    """A 64-bit hash of each id, the same in every process (SipHash, of pandas)."""
    from pandas.util import hash_array  # half a second, for those who have ids of their own

    return hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)


def find_duplicates(
    parts: Sequence[Path],
    *,
    hash_of: Callable[[pa.BinaryArray], Hashes] = hash_ids,
    hashes_held: int = HASHES_HELD,
    bytes_held: int = IDS_HELD_BYTES,
) -> Duplicates:
    """The ids that several rows of ``parts`` (Parquet with a column ``id``) have in common.

    Rows without an id are left out. ``hashes_held`` (at least 2) and ``bytes_held`` bound the memory.

    Raises OSError or pyarrow.ArrowException for a part that cannot be read.
    """
    found = Duplicates()
    suspects = np.empty(0, np.uint64)
    for repeated in _repeated_hashes(parts, hash_of, hashes_held):
        suspects = np.concatenate([suspects, repeated])
        if len(suspects) > hashes_held // 2:  # else they wait for the others: one reading serves them all
            found = _with_counts(found, parts, suspects, hash_of, bytes_held)
            suspects = suspects[:0]
    return _with_counts(found, parts, suspects, hash_of, bytes_held)


def _ids(parts: Sequence[Path]) -> Iterator[pa.BinaryArray]:
    for path in parts:
        with pq.ParquetFile(path) as part:
            for batch in part.iter_batches(_BATCH_ROWS, columns=["id"]):
                yield batch["id"].drop_null().cast(pa.binary())


def _repeated_hashes(
    parts: Sequence[Path], hash_of: Callable[[pa.BinaryArray], Hashes], held: int
) -> Iterator[Hashes]:
    """The hashes that occur more than once, ascending, a window of them after each reading."""
    first = 0
    while first <= _LAST_HASH:
        window = _HashWindow(first, held)
        for ids in _ids(parts):
            window.add(hash_of(ids))
        yield window.repeated()
        first = window.last + 1


class _HashWindow:
    """The hashes from ``first`` on, as many as can be held: ``last`` comes down where they are too many.

    A hash that is held once and repeated beyond counting takes one place, so the bound holds whatever the
    hash function, and each window has at least one hash, so there is an end.
    """

    def __init__(self, first: int, held: int) -> None:
        self.last = _LAST_HASH
        self._first = first
        self._hashes = np.empty(held, np.uint64)
        self._filled = 0
        self._repeated = np.empty(0, np.uint64)

    def add(self, hashes: Hashes) -> None:
        hashes = self._inside(hashes)
        while len(hashes):
            taken = hashes[: len(self._hashes) - self._filled]
            self._hashes[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            hashes = hashes[len(taken) :]
            if self._filled == len(self._hashes):
                self._thin_out()
                if self._filled > len(self._hashes) // 2:
                    self._lower_last()
                hashes = self._inside(hashes)

    def repeated(self) -> Hashes:
        """Those that were added more than once, ascending."""
        self._thin_out()
        return self._repeated

    def _inside(self, hashes: Hashes) -> Hashes:
        return hashes[(hashes >= np.uint64(self._first)) & (hashes <= np.uint64(self.last))]

    def _thin_out(self) -> None:
        """Keep each hash once, sorted, and note which were there again."""
        hashes = self._hashes[: self._filled]
        hashes.sort()
        again = hashes[1:][hashes[1:] == hashes[:-1]]
        if len(again):
            self._repeated = _distinct(np.sort(np.concatenate([self._repeated, _distinct(again)])))
            once = _distinct(hashes)
            self._filled = len(once)
            self._hashes[: self._filled] = once

    def _lower_last(self) -> None:
        """Leave the upper half to later windows."""
        self._filled //= 2
        self.last = int(self._hashes[self._filled]) - 1
        self._repeated = self._repeated[self._repeated <= np.uint64(self.last)]


def _distinct(ascending: Hashes) -> Hashes:
    return ascending[np.append(True, ascending[1:] != ascending[:-1])]


def _are_among(suspects: Hashes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Which of ``hashes`` are in ``suspects`` (ascending, not empty)."""
    order = np.argsort(hashes)  # looked up in order, for the cache's sake: three times as fast
    ascending = hashes[order]
    places = np.minimum(np.searchsorted(suspects, ascending), len(suspects) - 1)
    are_among = np.empty(len(hashes), np.bool_)
    are_among[order] = suspects[places] == ascending
    return are_among


def _with_counts(
    found: Duplicates,
    parts: Sequence[Path],
    suspects: Hashes,
    hash_of: Callable[[pa.BinaryArray], Hashes],
    bytes_held: int,
) -> Duplicates:
    """``found`` and the duplicates among the rows whose hash is one of ``suspects`` (ascending)."""
    after: bytes | None = None
    while len(suspects):
        window = _IdWindow(after, bytes_held)
        for ids in _ids(parts):
            ids = window.inside(ids)
            window.add(ids.filter(pa.array(_are_among(suspects, hash_of(ids)))))
        counts = window.repeated()
        found = Duplicates(
            found.ids + counts.num_rows,
            found.rows + (pc.sum(counts["rows"]).as_py() or 0),
            _examples(found.examples, counts),
        )
        if window.last is None:
            break
        after = window.last
    return found


class _IdWindow:
    """Counts of the ids after ``after`` in the order of their bytes, as many as can be held.

    ``last`` is the last id that is counted here; None while all are. One id is held whatever its length.
    """

    def __init__(self, after: bytes | None, held: int) -> None:
        self.last: bytes | None = None
        self._after = after
        self._held = held
        self._tables: list[pa.Table] = []
        self._bytes = 0

    def inside(self, ids: pa.BinaryArray) -> pa.BinaryArray:
        """Those that are to be counted here, as far as is known yet."""
        if self._after is not None:
            ids = ids.filter(pc.greater(ids, self._after))
        if self.last is not None:
            ids = ids.filter(pc.less_equal(ids, self.last))
        return ids

    def add(self, ids: pa.BinaryArray) -> None:
        """Count ids, all of them ``inside``."""
        if len(ids) == 0:
            return
        table = pa.table({"id": ids, "rows": pa.array(np.ones(len(ids), np.int64))})
        self._tables.append(table)
        self._bytes += table.nbytes
        if self._bytes > self._held:
            self._hold(self._lower_last(self._counted()))

    def repeated(self) -> pa.Table:
        """Columns id and rows, of the ids that were added more than once."""
        counts = self._counted()
        return counts.filter(pc.greater(counts["rows"], 1))

    def _hold(self, counts: pa.Table) -> None:
        self._tables, self._bytes = [counts], counts.nbytes

    def _counted(self) -> pa.Table:
        if not self._tables:
            return pa.table({"id": pa.array([], pa.binary()), "rows": pa.array([], pa.int64())})
        counts = pa.concat_tables(self._tables).group_by("id").aggregate([("rows", "sum")])
        return counts.select(["id", "rows_sum"]).rename_columns(["id", "rows"])

    def _lower_last(self, counts: pa.Table) -> pa.Table:
        """Leave the later ids to later windows, until half of the room is free."""
        if counts.nbytes <= self._held // 2 or counts.num_rows == 1:
            return counts
        counts = counts.sort_by("id")
        while counts.nbytes > self._held // 2 and counts.num_rows > 1:
            counts = counts.slice(0, counts.num_rows // 2)
        self.last = counts["id"][-1].as_py()
        return counts.take(pa.array(np.arange(counts.num_rows)))  # a slice would keep all of it alive


def _examples(known: Sequence[tuple[str, int]], counts: pa.Table) -> tuple[tuple[str, int], ...]:
    top = counts.sort_by([("rows", "descending"), ("id", "ascending")]).slice(0, _EXAMPLES).to_pylist()
    named = [(row["id"].decode(errors="replace"), row["rows"]) for row in top]
    return tuple(sorted([*known, *named], key=lambda each: (-each[1], each[0]))[:_EXAMPLES])
