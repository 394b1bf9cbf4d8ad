"""The rows that a calibration is made from: of each a score, a length, a form of prompt, what it is for.

Only the columns that are needed are read, a batch at a time: a row takes some 16 bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tuco_vllm.analysis.labels import rows_with
from tuco_vllm.analysis.parts import fixed_columns, metadata_of, opened_part, part_names
from tuco_vllm.errors import InputError
from tuco_vllm.records import SUCCESS
from tuco_vllm.store import Store

Where = tuple[tuple[str, str], ...]
"""COLUMN=VALUE pairs: a row is meant that has, in each column named, one of the values given for it."""

_BATCH = 1 << 16
_EXAMPLES = 6


@dataclass(frozen=True)
class Wanted:
    """What the rows are for. Without ``clean``, every row that is neither attack nor control is clean."""

    clean: Where = ()
    attack: Where = ()
    controls: tuple[Where, ...] = ()

    @property
    def selections(self) -> tuple[Where, ...]:
        """Clean, attack, then the controls: the order of ``Scored.meant``'s rows."""
        return (self.clean, self.attack, *self.controls)


@dataclass(frozen=True)
class Origin:
    """What scores must share to be compared with one threshold."""

    pt_fingerprint: str
    ft_fingerprint: str
    dtype: str
    row_dtype: str
    pt: str = field(compare=False)
    ft: str = field(compare=False)
    where: str = field(compare=False)
    """The part's place, for messages."""


@dataclass(frozen=True)
class Scored:
    """Rows that are for something, N of them."""

    origin: Origin
    values: NDArray[np.float64]
    """``[N]``, finite."""
    tokens: NDArray[np.int32]
    """``[N]``, of the prompts."""
    forms: list[str | None]
    """Chat templates (SHA-256) that prompts went through; None for text and token ids as they are."""
    form: NDArray[np.int16]
    """``[N]``, places in ``forms``."""
    meant: NDArray[np.bool_]
    """``[2 + controls, N]``: whether a row is clean, an attack, and of each control."""
    left_out: int
    """Rows that are for something and have no finite score."""
    unfinished: list[str]
    """Runs that have not come to their end."""


def written(where: Where) -> str:
    """As it was given."""
    return " ".join(f"{column}={value}" for column, value in where)


def read_rows(stores: Sequence[Store], column: str, wanted: Wanted, ft: str | None = None) -> Scored:
    """The rows of all runs in ``stores`` that are wanted. ``ft`` keeps one fine-tune's, by its name.

    Raises InputError for what is no run, rows that cannot be put together, and a selection without rows.
    """
    gathered = _Gathered(column, wanted)
    names = set()
    for store in stores:
        store.look()
        parts = part_names(store)
        if not parts:
            raise InputError(f"{store.where} holds no scores: name the --out of a tuco score")
        for name in parts:
            place = f"{store.where}/{name}"
            with opened_part(store, name) as part:
                metadata = _metadata(part, place)
                names.add(metadata["ft"])
                if ft in (None, metadata["ft"]):
                    gathered.add(part, metadata, place)
    if ft is not None and ft not in names:
        raise InputError(f"no rows were scored under --ft {ft}: there are {', '.join(sorted(names))}")
    unfinished = [store.where for store in stores if store.read(SUCCESS) is None]
    return gathered.scored(unfinished)


def _metadata(part: pq.ParquetFile, place: str) -> dict[str, str]:
    """What a part says of itself; InputError where it leaves out what is needed."""
    said = metadata_of(part)
    for name in ("pt_fingerprint", "ft_fingerprint", "pt", "ft", "dtype", "template_applied"):
        if name not in said:
            raise InputError(f"{place} is no part of a tuco score: it does not say its tuco.{name}")
    return said


@dataclass
class _Gathered:
    """What has been read so far."""

    column: str
    wanted: Wanted
    origin: Origin | None = None
    left_out: int = 0
    forms: list[str | None] = field(default_factory=list)
    batches: list[tuple[Any, Any, Any, Any]] = field(default_factory=list)
    known: dict[str, set[str]] = field(default_factory=dict)
    """Label columns that there are, with a few of their values."""

    def add(self, part: Any, metadata: Mapping[str, str], place: str) -> None:
        schema, labels = part.schema_arrow, {name for where in self.wanted.selections for name, _ in where}
        fixed = fixed_columns(schema)
        scores = [name for name in fixed if pa.types.is_float64(schema.field(name).type)]
        if "prompt_tokens" not in fixed:
            raise InputError(f"{place} is no part of a tuco score: it has no column prompt_tokens")
        if self.column not in scores:
            raise InputError(
                f"{place} has no column {self.column!r} of scores: there are {', '.join(scores)}"
            )
        there = [name for name in schema.names if name in labels]
        if twice := [name for name in (*there, self.column, "prompt_tokens") if schema.names.count(name) > 1]:
            raise InputError(f"{place} has two columns {twice[0]!r}: rename one and score again")
        for name in there:
            self.known.setdefault(name, set())
        form = self._form(metadata)
        columns = list(dict.fromkeys([self.column, "prompt_tokens", "error", *there]))
        for batch in part.iter_batches(_BATCH, columns=columns):
            meant = np.stack(list(self._meant(batch, there)))
            if not meant.any():
                continue
            self._expect_together(metadata, place)
            values = batch[self.column].to_numpy(zero_copy_only=False)
            usable = np.isfinite(values) & batch["error"].is_null().to_numpy(zero_copy_only=False)
            usable &= batch["prompt_tokens"].is_valid().to_numpy(zero_copy_only=False)
            chosen = meant.any(axis=0)
            self.left_out += int((chosen & ~usable).sum())
            chosen &= usable
            tokens = batch["prompt_tokens"].fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
            place_of_form = np.full(int(chosen.sum()), form, np.int16)
            self.batches.append((values[chosen], tokens[chosen], place_of_form, meant[:, chosen]))

    def _meant(self, batch: pa.RecordBatch, there: list[str]) -> Iterator[Any]:
        """What the rows are for, in ``Wanted.selections``' order: masks ``[rows]``."""
        for name in there:
            self._remember(name, batch[name])
        clean, *others = (self._matching(batch, where) for where in self.wanted.selections)
        if not self.wanted.clean:
            clean = ~np.any(others, axis=0)
        yield from (clean, *others)

    def _matching(self, batch: pa.RecordBatch, where: Where) -> Any:
        mask = np.full(batch.num_rows, bool(where))
        for column in dict(where):
            values = [value for name, value in where if name == column]
            mask &= rows_with(batch, column, values)
        return mask

    def _remember(self, name: str, column: pa.Array) -> None:
        if len(seen := self.known[name]) < _EXAMPLES:
            seen.update(map(_shown, column[:1000].unique().to_pylist()))

    def _form(self, metadata: Mapping[str, str]) -> int:
        """The place of a part's form of prompts."""
        templated = metadata["template_applied"] == "true"
        form = metadata.get("chat_template_sha256", "") if templated else None
        if form not in self.forms:
            self.forms.append(form)
        return self.forms.index(form)

    def _expect_together(self, metadata: Mapping[str, str], place: str) -> None:
        """InputError where a part's wanted rows cannot share a threshold with those before."""
        if metadata["template_applied"] == "true" and "templated_rows" in metadata:
            counts = [_count(metadata, name, place) for name in ("templated_rows", "rows", "errors")]
            if counts[0] < counts[1] - counts[2]:
                raise InputError(
                    f"{place} has prompts with a chat template and prompts without, and does not say which "
                    "is which: score the two in runs of their own"
                )
        origin = Origin(
            pt_fingerprint=metadata["pt_fingerprint"],
            ft_fingerprint=metadata["ft_fingerprint"],
            dtype=metadata["dtype"],
            row_dtype=metadata.get("row_dtype", metadata["dtype"]),  # of schema 1, which had no other
            pt=metadata["pt"],
            ft=metadata["ft"],
            where=place,
        )
        if self.origin is None:
            self.origin = origin
        if origin != self.origin:
            raise InputError(_difference(self.origin, origin))

    def scored(self, unfinished: list[str]) -> Scored:
        """All of it; InputError for a selection that nothing is in."""
        batches = self.batches or [_NOTHING]
        values, tokens, form, meant = (np.concatenate(each, axis=-1) for each in zip(*batches, strict=True))
        self.batches.clear()
        wanted = self.wanted
        for place, where in enumerate(wanted.selections):
            if place != 1 or where:
                self._expect_rows(where, place, bool(len(values)) and bool(meant[place].any()))
        both = int((meant[0] & meant[1]).sum())
        if both:
            rows = f"{both:,} rows are both --clean {written(wanted.clean)}"
            raise InputError(f"{rows} and --attack {written(wanted.attack)}: name two sets")
        assert self.origin is not None
        return Scored(self.origin, values, tokens, self.forms, form, meant, self.left_out, unfinished)

    def _expect_rows(self, where: Where, place: int, any_rows: bool) -> None:
        option = ["--clean", "--attack"][place] if place < 2 else "--control"
        for column, _ in where:
            if column not in self.known:
                raise InputError(f"no column {column!r} ({option} {written(where)}): no run has it")
        if any_rows:
            return
        if not where:
            raise InputError("there is no scored row to calibrate with: all are errors, attacks or controls")
        has = "; ".join(
            f"{column} has {', '.join(sorted(self.known[column])[:_EXAMPLES])}" for column in dict(where)
        )
        raise InputError(f"no scored row has {written(where)} ({option}): {has}")


_NOTHING = (np.empty(0), np.empty(0, np.int32), np.empty(0, np.int16), np.empty((0, 0), np.bool_))


def _count(metadata: Mapping[str, str], name: str, place: str) -> int:
    said = metadata.get(name, "")
    if not said.isdecimal():
        raise InputError(f"{place} is no part of a tuco score: its tuco.{name} is {_shown(said)!r}")
    return int(said)


def _shown(value: Any) -> str:
    """What strangers wrote, with nothing in it that a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value)[:40])


def _difference(one: Origin, other: Origin) -> str:
    """Why rows of two parts cannot be put together."""
    mend = "calibrate them apart"
    if one.pt_fingerprint != other.pt_fingerprint:
        what = f"PT is {one.pt} in {one.where} and {other.pt} in {other.where}, which is another model"
    elif one.ft_fingerprint != other.ft_fingerprint:
        what = f"FT is {one.ft} in {one.where} and {other.ft} in {other.where}, which is another model"
        mend = "calibrate them apart, by --ft NAME where they lie in one place"
    else:
        what = (
            f"{one.where} was scored in {one.dtype} with rows in {one.row_dtype}, "
            f"{other.where} in {other.dtype} with rows in {other.row_dtype}"
        )
    return f"{what}: {mend}"
