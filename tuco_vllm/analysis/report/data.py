"""Runs -> a table of their rows in DuckDB and sums over their layers, in one pass over the parts.

A *series* is what stands side by side: a run, or one adapter of a run that has several. A *cell* is a group
of a series. Memory is bounded: DuckDB's limit, one batch of rows, and cells times layers.

Legend: N rows, L layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tuco_vllm.analysis.database import fill as fill_table
from tuco_vllm.analysis.database import finite, scratch_database
from tuco_vllm.analysis.parts import fixed_columns, metadata_of, opened_part
from tuco_vllm.analysis.report.sources import Source, open_sources
from tuco_vllm.analysis.report.sums import Sums
from tuco_vllm.errors import InputError
from tuco_vllm.records import LAYERS, SCALARS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST_CELLS = 1000
SAMPLED = 100_000
"""Rows of a cell, drawn at random, of which AUCs, rank correlations and dots are."""
PLACES = 2048
"""Tokens of a response that are looked at by position."""
_BATCH = 8192

NUMBERS = (
    *("prompt_tokens", *SCALARS, "response_tokens", "response_tuco"),
    *("output_co", "relative_reward"),
)
"""Fixed columns of one number a row; "along" is the one that a person named."""
_ROWS = pa.schema(
    [
        *(pa.field(name, pa.int32()) for name in ("cell", "part", "place")),
        *(pa.field("draw", pa.float32()), pa.field("id", pa.string()), pa.field("error", pa.string())),
        *(pa.field(name, pa.float64()) for name in (*NUMBERS, "along")),
    ]
)


@dataclass(frozen=True)
class Cell:
    """A group of a series, by their numbers."""

    series: int
    group: int


@dataclass
class Runs:
    """What a report is made of. Table ``rows``: every row, its ``tuco`` null where it has no finite score;
    ``sample``: at most ``SAMPLED`` scored ones of each cell."""

    database: "DuckDBPyConnection"
    sources: list[Source]
    group: str | None
    """The column that makes groups; None: all rows are one."""
    by: str | None
    series: list[tuple[int, str | None]] = field(default_factory=list)
    """(place in ``sources``, adapter)."""
    groups: list[str | None] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    parts: list[tuple[Source, str, dict[str, str]]] = field(default_factory=list)
    """(run, name, metadata)."""
    layers: dict[str, Sums] = field(default_factory=dict)
    """Of ``LAYERS``, and "beta"."""
    positions: Sums = field(default_factory=Sums)
    odd_layers: int = 0
    """Rows whose lists are not as long as the others'."""

    def has(self, column: str) -> bool:
        """Whether any scored row has this number."""
        [count] = self.one(f"SELECT count({column}) FROM rows WHERE tuco IS NOT NULL")
        return bool(count)

    def one(self, query: str) -> tuple[Any, ...]:
        """A query's only row."""
        return self.database.execute(query).fetchall()[0]

    def all(self, query: str) -> list[tuple[Any, ...]]:
        """A query's rows."""
        return self.database.execute(query).fetchall()

    def sample(self, cell: int, *columns: str) -> tuple[NDArray[np.float64], ...]:
        """These columns of a cell's sampled rows; NaN for null."""
        query = f"SELECT {', '.join(columns)} FROM sample WHERE cell = {cell} ORDER BY part, place"
        found = self.database.execute(query).fetchnumpy()
        return tuple(
            np.ma.filled(np.ma.asarray(found[name], np.float64), np.nan).astype(np.float64)
            for name in columns
        )


@contextmanager
def read_runs(places: Sequence[str], group: str | None, by: str | None) -> Iterator[Runs]:
    """Read the runs at these places. Raises InputError for a place without a run, and a column without it.

    ``group`` None is the column ``group``, if there is one.
    """
    sources = open_sources(places)
    there = [name for source in sources for name in source.columns]
    if group is None and "group" in there:
        group = "group"
    for option, column in (("group", group), ("by", by)):
        if column is not None and column not in there:
            names = ", ".join(dict.fromkeys(there))
            raise InputError(f"--{option} {column}: there is no such column; there are {names[:500]}")
    with scratch_database() as database:
        runs = Runs(database, sources, group, by, layers={name: Sums() for name in (*LAYERS, "beta")})
        reader = _Reader(runs)
        fill_table(database, "rows", _ROWS, reader.batches())
        columns = {
            "cell": list(range(len(runs.cells))),
            "series": [cell.series for cell in runs.cells],
            "grp": [cell.group for cell in runs.cells],
        }
        named = {name: pa.array(values, pa.int32()) for name, values in columns.items()}
        database.register("named", pa.table(named))
        database.execute("CREATE TABLE cells AS SELECT * FROM named")
        share = f"least(1.0, {SAMPLED} / n)"
        counts = (
            f"SELECT cell AS c, {share} AS share FROM (SELECT cell, count(tuco) AS n FROM rows GROUP BY cell)"
        )
        database.execute(
            "CREATE TABLE sample AS SELECT rows.* EXCLUDE (id, error) FROM rows"
            f" JOIN ({counts}) ON cell = c WHERE tuco IS NOT NULL AND draw < share"
        )
        yield runs


class _Reader:
    """Gives every row its cell, and adds up its layers."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._draw = np.random.default_rng(0)
        self._depth: dict[int, int] = {}  # series -> L
        self._numbers: dict[str, dict[Any, int]] = {"series": {}, "group": {}, "cell": {}}

    def batches(self) -> Iterator[pa.RecordBatch]:
        for number, source in enumerate(self.runs.sources):
            for name in source.parts:
                with opened_part(source.store, name) as part:
                    said = metadata_of(part)
                    source.add_facts(said)
                    self.runs.parts.append((source, name, said))
                    fixed = fixed_columns(part.schema_arrow)
                    asked = [each for each in (self.runs.group, self.runs.by) if each is not None]
                    known = ("id", "error", "ft", "response_tucos", *NUMBERS, *LAYERS)
                    wanted = [each for each in fixed if each in known]
                    wanted += [each for each in dict.fromkeys(asked) if each in part.schema_arrow.names]
                    place = 0
                    for batch in part.iter_batches(_BATCH, columns=list(dict.fromkeys(wanted))):
                        if batch.num_rows:
                            yield self._rows(number, batch, fixed, place)
                        place += batch.num_rows

    def _rows(self, source: int, batch: pa.RecordBatch, fixed: list[str], place: int) -> pa.RecordBatch:
        size, empty = batch.num_rows, pa.nulls(batch.num_rows, pa.float64())
        failed = pc.is_valid(batch["error"])
        numbers = {name: finite(batch[name]) if name in fixed else empty for name in NUMBERS}
        numbers["tuco"] = pc.if_else(failed, pa.scalar(None, pa.float64()), numbers["tuco"])
        series, cells = self._cells(source, batch, fixed)
        scored = pc.is_valid(numbers["tuco"]).to_numpy(zero_copy_only=False)
        self._add_lists(batch, fixed, series, cells, scored)
        columns = [
            *(pa.array(cells, pa.int32()), pa.array(np.full(size, len(self.runs.parts) - 1), pa.int32())),
            *(pa.array(np.arange(place, place + size), pa.int32()), self._draws(size)),
            *(batch["id"].cast(pa.string()), batch["error"].cast(pa.string()), *numbers.values()),
            _number(batch, self.runs.by) if self.runs.by in batch.schema.names else empty,
        ]
        return pa.record_batch(columns, schema=_ROWS)

    def _draws(self, size: int) -> pa.Array:
        return pa.array(self._draw.random(size, np.float32))

    def _cells(
        self, source: int, batch: pa.RecordBatch, fixed: list[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each row its series and its cell ``[N]``."""
        fts = _texts(batch["ft"]) if "ft" in fixed else None
        named = self.runs.group is not None and self.runs.group in batch.schema.names
        series = self._coded(fts, "series", batch.num_rows, lambda ft: (source, ft))
        groups = self._coded(_texts(batch[self.runs.group]) if named else None, "group", batch.num_rows)
        pairs, place = np.unique(np.stack([series, groups], axis=1), axis=0, return_inverse=True)
        numbers = [self._number("cell", Cell(int(one), int(two))) for one, two in pairs]
        if len(self.runs.cells) > MOST_CELLS:
            what = f"--group {self.runs.group}" if self.runs.group else "the column ft"
            raise InputError(f"{what} makes more than {MOST_CELLS:,} groups: name a column with fewer values")
        return series, np.array(numbers, np.int64)[place.ravel()]

    def _coded(self, texts: pa.Array | None, kind: str, size: int, key: Any = None) -> NDArray[np.int64]:
        """A number for each row's text; None where there is no such column."""
        if texts is None:
            return np.full(size, self._number(kind, key(None) if key else None), np.int64)
        encoded = texts.dictionary_encode("encode")
        distinct = encoded.dictionary.to_pylist()
        if kind == "group" and len(distinct) > MOST_CELLS:
            distinct = distinct[: MOST_CELLS + 1]  # the caller refuses them
            raise InputError(
                f"--group {self.runs.group} makes more than {MOST_CELLS:,} groups: "
                "name a column with fewer values"
            )
        numbers = [self._number(kind, key(text) if key else text) for text in distinct]
        return np.array(numbers, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]

    def _number(self, kind: str, key: Any) -> int:
        known = self._numbers[kind]
        if key not in known:
            known[key] = len(known)
            lists: dict[str, list[Any]]
            lists = {"series": self.runs.series, "group": self.runs.groups, "cell": self.runs.cells}
            lists[kind].append(key)
        return known[key]

    def _add_lists(
        self,
        batch: pa.RecordBatch,
        fixed: list[str],
        series: NDArray[np.int64],
        cells: NDArray[np.int64],
        scored: NDArray[np.bool_],
    ) -> None:
        if "response_tucos" in fixed:
            lists = batch["response_tucos"].filter(pa.array(scored))
            self.runs.positions.add_lists(cells[scored], lists, PLACES)
        there = [name for name in LAYERS if name in fixed]
        if not there:
            return
        lengths = np.stack(
            [pc.fill_null(pc.list_value_length(batch[name]), 0).to_numpy(False) for name in there]
        )
        for number in np.unique(series[scored]):
            rows = scored & (series == number)
            depth = self._depth.setdefault(int(number), int(lengths[0, rows][0]))
            whole = rows & (lengths == depth).all(axis=0)
            self.runs.odd_layers += int(rows.sum() - whole.sum())
            if depth and whole.any():
                self._add_layers({n: batch[n].filter(pa.array(whole)) for n in there}, cells[whole], depth)

    def _add_layers(self, lists: dict[str, pa.Array], cells: NDArray[np.int64], depth: int) -> None:
        values = {
            name: each.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, depth)
            for name, each in lists.items()
        }
        if {"cum_ptc_norms", "cum_ftc_norms"} <= values.keys():
            total = values["cum_ptc_norms"] + values["cum_ftc_norms"]
            values["beta"] = np.divide(
                values["cum_ftc_norms"], total, out=np.zeros_like(total), where=total != 0
            )
        for name, numbers in values.items():
            self.runs.layers[name].add(cells, numbers)


def _texts(column: pa.Array) -> pa.Array:
    """A column's values as words, whatever they are."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())


def _number(batch: pa.RecordBatch, name: str | None) -> pa.Array:
    column = batch[name]
    try:
        return finite(pc.cast(column, pa.float64(), safe=False))
    except pa.ArrowException as error:
        raise InputError(f"--by {name} holds what is no number: {' '.join(str(error).split())}") from error
