"""A sweep's Parquet -> of each data set and range of layers who answered what at which alpha.

A question counts where it was answered at every alpha of the range, so that all alphas are compared on the
same questions; the others are counted as left out.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tuco_vllm.errors import InputError
from tuco_vllm.store import Store

SWEEP, ANSWERS = "sweep.json", "answers-*.parquet"

MAIN = "main"
"""The data set that is swept; the other is a utility."""

_COLUMNS = ("row", "dataset", "task", "group", "question", "alpha", "first_layer", "last_layer")
_ANSWERED = ("correct", "option_logps", "mass", "error")

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """Answers of one data set under the alphas of one range of layers: N questions, A alphas, which go up."""

    dataset: str
    first_layer: int
    last_layer: int
    alphas: list[float]
    tasks: list[str]
    """Of each question."""
    groups: list[str | None]
    questions: list[str]
    """Of each question what is equal for equal ones."""
    correct: Bools
    """``[N, A]``."""
    mass: Floats
    """``[N, A]``: probability of all options together."""
    tied: Bools
    """``[N, A]``: two options were the most probable ones."""
    left_out: int
    """Questions without an answer at some alpha."""

    @property
    def ft(self) -> int:
        """The place of alpha = 1."""
        return self.alphas.index(1.0)


@dataclass(frozen=True)
class Answers:
    """All that a sweep's directory holds."""

    where: str
    cells: list[Cell]
    rows: int
    errors: int
    reasons: Counter[str] = field(default_factory=Counter)
    """Error texts, numbers in them replaced by N, with their counts."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """What sweep.json says."""
    chunks_missing: int = 0


def read_answers(store: Store) -> Answers:
    """Read a sweep's directory, finished or not. Raises InputError where there is none."""
    sweep = _sweep(store)
    own = str(sweep.get("sweep", ""))
    names = [name for name in sorted(store.list("")) if fnmatch(name, ANSWERS) and own in name]
    if not names:
        raise InputError(f"{store.where} holds no answers: name the --out of a tuco sweep")
    table = pa.concat_tables([_part(store, name) for name in names])
    columns = {name: table[name].to_pylist() for name in _COLUMNS}
    answered = {name: table[name].to_pylist() for name in _ANSWERED}
    reasons = Counter(re.sub(r"\d+", "N", reason) for reason in answered["error"] if reason is not None)
    places: dict[tuple[str, int, int], list[int]] = {}
    for place, key in enumerate(
        zip(columns["dataset"], columns["first_layer"], columns["last_layer"], strict=True)
    ):
        places.setdefault(key, []).append(place)
    cells = [_cell(key, own_places, columns, answered) for key, own_places in places.items()]
    cells.sort(key=lambda cell: cell.dataset != MAIN)  # ranges stay in the order of the command
    chunks = sweep.get("chunks")
    missing = max(chunks - len(names), 0) if isinstance(chunks, int) else 0
    return Answers(
        store.where, cells, table.num_rows, reasons.total(), reasons, sweep, chunks_missing=missing
    )


def _sweep(store: Store) -> dict[str, Any]:
    try:
        value = json.loads(store.read(SWEEP) or b"{}")
    except ValueError as error:
        raise InputError(f"cannot read {store.where}/{SWEEP}: {error}") from error
    return value if isinstance(value, dict) else {}


def _part(store: Store, name: str) -> pa.Table:
    with store.open(name) as file:
        try:
            return pq.read_table(file, columns=[*_COLUMNS, *_ANSWERED])
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, OSError) as error:
            raise InputError(f"{store.where}/{name} is no part of a sweep: {error}") from error


def _cell(
    key: tuple[str, int, int], places: Sequence[int], columns: dict[str, list[Any]], answered: dict[str, Any]
) -> Cell:
    alphas = sorted({columns["alpha"][place] for place in places})
    if 1.0 not in alphas:
        raise InputError(f"layers {key[1]} to {key[2]} have no answers at alpha 1, which Δ is against")
    of_question: dict[int, dict[float, int]] = {}
    for place in places:
        of_question.setdefault(columns["row"][place], {})[columns["alpha"][place]] = place
    grids = [
        [by_alpha[alpha] for alpha in alphas]
        for _, by_alpha in sorted(of_question.items())
        if len(by_alpha) == len(alphas)
        and all(answered["error"][place] is None for place in by_alpha.values())
    ]
    shape = (len(grids), len(alphas))
    flat = [place for grid in grids for place in grid]
    first = [grid[0] for grid in grids]
    return Cell(
        *key,
        alphas,
        [_name(columns["task"][place]) for place in first],
        [columns["group"][place] for place in first],
        [str(columns["question"][place]) for place in first],
        np.array([answered["correct"][place] for place in flat], dtype=bool).reshape(shape),
        np.array([answered["mass"][place] for place in flat], dtype=float).reshape(shape),
        np.array([_is_tied(answered["option_logps"][place]) for place in flat], dtype=bool).reshape(shape),
        left_out=len(of_question) - len(grids),
    )


def _name(task: str | None) -> str:
    return "(no task)" if task is None else task


def _is_tied(logps: Sequence[float]) -> bool:
    return sum(logp == max(logps) for logp in logps) > 1
