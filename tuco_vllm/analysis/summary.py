"""What a run's parts hold, for its closing table: counts, and quantiles by DuckDB in bounded memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tuco_vllm.analysis.database import EXACT_ROWS, fill, finite, quantiles, scratch_database
from tuco_vllm.analysis.parts import fixed_columns, opened_part, part_names
from tuco_vllm.store import Store

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

MEANS = ("output_co", "relative_reward")
_SCORES = ("tuco", "response_tuco", *MEANS)
_SCHEMA = pa.schema([pa.field(name, pa.float64()) for name in _SCORES])


@dataclass
class Summary:
    """What the committed parts of a run hold."""

    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Error texts, numbers in them replaced by N, with their counts."""
    tuco: dict[str, float] = field(default_factory=dict)
    """"min", "5%", ... "95%", "max"; empty where nothing was scored."""
    responses: int = 0
    """Rows whose response was scored."""
    response_tuco: dict[str, float] = field(default_factory=dict)
    """As ``tuco``, of the responses' means."""
    means: dict[str, float] = field(default_factory=dict)
    """Of the columns in ``MEANS`` that there are."""
    exact: bool = True
    """Whether quantiles are those of all scores, at nearest rank; else a t-digest's."""


def summarise(store: Store, *, exact_rows: int = EXACT_ROWS) -> Summary:
    """Read a run's parts, a batch at a time. Raises InputError for a part that cannot be read.

    Up to ``exact_rows`` rows their scores go into a temporary file, of 640 MB at most.
    """
    summary = Summary()
    if not (names := part_names(store)):
        return summary
    summary.exact = _are_few(store, names, exact_rows)
    asked = ", ".join(
        [
            *(_spread_of(column, summary.exact) for column in ("tuco", "response_tuco")),
            "count(response_tuco)",
            *(f"count({name}), avg({name})" for name in MEANS),
        ]
    )
    with scratch_database() as database:
        # Of very many scores none is kept: a finished run must not fail for want of room.
        kept = "*" if summary.exact else asked
        fill(database, "scores", _SCHEMA, _batches(store, names, summary), kept)
        found: Any = database.execute(f"SELECT {asked if summary.exact else '*'} FROM scores").fetchone()
    summary.tuco, summary.response_tuco = _spread(*found[:3]), _spread(*found[3:6])
    summary.responses = found[6]
    pairs = zip(MEANS, found[7::2], found[8::2], strict=True)
    summary.means = {name: mean for name, count, mean in pairs if count}
    return summary


def _are_few(store: Store, names: list[str], rows: int) -> bool:
    """Whether parts have at most so many rows, by their footers; no more are read than it takes."""
    for name in names:
        with opened_part(store, name) as part:
            rows -= part.metadata.num_rows
        if rows < 0:
            return False
    return True


def _spread_of(column: str, exact: bool) -> str:
    return f"min({column}), max({column}), {quantiles(column, QUANTILES, exact)}"


def _spread(low: float | None, high: float | None, between: list[float]) -> dict[str, float]:
    if low is None or high is None:
        return {}
    named = {f"{share:.0%}": value for share, value in zip(QUANTILES, between, strict=True)}
    return {"min": low, **named, "max": high}


def _batches(store: Store, names: list[str], summary: Summary) -> Iterator[pa.RecordBatch]:
    """The scores, while the rest is counted."""
    for name in names:
        with opened_part(store, name) as part:
            fixed = fixed_columns(part.schema_arrow)
            wanted = [each for each in ("prompt_tokens", "error", *_SCORES) if each in fixed]
            for batch in part.iter_batches(columns=wanted):
                _count(batch, summary)
                yield _scores(batch)


def _count(batch: pa.RecordBatch, summary: Summary) -> None:
    summary.rows += batch.num_rows
    if "prompt_tokens" in batch.schema.names:
        summary.prompt_tokens += pc.sum(batch["prompt_tokens"]).as_py() or 0
    reasons = batch["error"].drop_null()
    summary.errors += len(reasons)
    for reason in pc.value_counts(pc.replace_substring_regex(reasons, r"\d+", "N")).to_pylist():
        summary.reasons[reason["values"]] += reason["counts"]


def _scores(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The scores of a batch, null where there is none, or no finite one."""
    columns = []
    for name in _SCORES:
        if name in batch.schema.names:
            columns.append(finite(batch[name]))
        else:
            columns.append(pa.nulls(batch.num_rows, pa.float64()))
    return pa.record_batch(columns, schema=_SCHEMA)
