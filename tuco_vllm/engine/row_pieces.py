"""A request's scores, put together from its chunks.

They leave the engine as one row of numbers: of the prompt's last row its norms and, where it was asked for,
the stream behind the last layer; then of all rows their scores; then their log-probabilities. ``row_scores``
reads it. A request that runs on PT's stream has no norms and no scores.

Shape suffixes: R rows of a chunk, C rows of a step, L layers, H hidden size, N = 7 norms.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.scoring_rows import targets_of
from tuco_vllm.errors import EngineError
from tuco_vllm.score_requests import EngineInput, RowScores, ScoredTokens
from tuco_vllm.steering import FT_STREAM, Asked, Steering


class RowValues(NamedTuple):
    """What a step brings of R rows; None of what nobody in it asks for."""

    norms_RLN: Tensor | None = None
    states_RH: Tensor | None = None
    """The stream behind the last layer, float32."""
    logps_R: Tensor | None = None
    """Of each row's target, anything where it has none."""

    def cut(self, rows: slice) -> "RowValues":
        """Those of some rows."""
        return RowValues(*(None if values is None else values[rows] for values in self))


class RowPieces:
    """One request's scores, chunk by chunk."""

    def __init__(self) -> None:
        self._columns: dict[int, Tensor] = {}
        """First position of a chunk -> ``[K, R]``, the K numbers that each of its rows has."""
        self._of_last: Tensor | None = None

    def add(self, values: RowValues, end: int, asked: Asked) -> None:
        """A chunk's rows, of the positions before ``end``."""
        if end <= asked.first:
            return  # the row that stands for none
        norms_RLN = values.norms_RLN if asked.stream == FT_STREAM else None
        states_RH = values.states_RH if asked.state else None
        columns = [] if norms_RLN is None else [_tucos(norms_RLN)]
        if asked.targets and values.logps_R is not None:
            columns.append(values.logps_R.clone())
        some = next(each for each in values if each is not None)
        start = end - len(some)
        # Behind it lies what a preemption took back.
        self._columns = {place: column for place, column in self._columns.items() if place < start}
        self._columns[start] = torch.stack(columns) if columns else some.new_empty(0, len(some))
        if start <= asked.last < end:
            row = asked.last - start
            of_last = [each[row].flatten() for each in (norms_RLN, states_RH) if each is not None]
            self._of_last = torch.cat([some.new_empty(0), *of_last])

    def whole(self, end: int, asked: Asked) -> Tensor:
        """All of it in a row. Empty if of the rows from the first one asked for to ``end`` any is missing."""
        place, columns = asked.first, [self._columns[start] for start in sorted(self._columns)]
        for start, column in zip(sorted(self._columns), columns, strict=True):
            if start != place:
                break
            place += column.shape[1]
        if place != end or self._of_last is None:
            return torch.empty(0)
        return torch.cat([self._of_last, torch.cat(columns, dim=1).flatten()])


def row_scores(numbers: Tensor, asked: ScoredTokens, num_layers: int) -> RowScores:
    """What ``RowPieces.whole`` has put in a row. Raises EngineError if that is nothing."""
    if not len(numbers):
        raise EngineError("the engine has lost rows of a request: please report this")
    wish, count = asked.asked, asked.num_rows
    of_ft = wish.stream == FT_STREAM
    norms = num_layers * len(NORM_COLUMNS) if of_ft else 0
    tucos, logps = count if of_ft else 0, count if wish.targets else 0
    parts = numbers.split([norms, len(numbers) - norms - tucos - logps, tucos, logps])
    return RowScores(
        norms=parts[0].view(num_layers, -1) if of_ft else None,
        state=parts[1] if wish.state else None,
        tucos=parts[2] if of_ft else None,
        logps=parts[3][wish.last - wish.first :] if wish.targets else None,
    )


def _tucos(norms_RLN: Tensor) -> Tensor:
    """``metrics.tuco`` of every row, in its precision."""
    last_RN = norms_RLN[:, -1].double()
    ptc_R, ftc_R = (last_RN[:, NORM_COLUMNS.index(name)] for name in ("cum_ptc_norms", "cum_ftc_norms"))
    total_R = ptc_R + ftc_R
    return torch.where(total_R != 0.0, ftc_R / total_R, 0.0).float()


class Reading(NamedTuple):
    """What a step of an engine that generates brings a request that asks for rows of its prompt."""

    pieces: RowPieces
    rows: slice
    """Its rows among the step's C."""
    end: int
    asked: Asked
    logits: int | None
    """The row of logits that its scores leave with; None while more of its prompt is to come."""


def readings_of_step(
    requests_M: Any,
    starts: Any,
    asked: Sequence[Asked | None],
    prompts: Sequence[tuple[RowPieces | None, int]],
    ends: Any,
    num_logits: Any,
) -> list[Reading]:
    """Of the requests at ``requests_M`` of the batch's N, whose rows begin at ``starts`` ``[M + 1]``.

    Of all N: what they ask for; what they have, and how many tokens their prompts have; up to which position
    the step comes; and rows of logits.
    """
    logits = np.cumsum(num_logits) - num_logits
    readings = []
    for place, request in enumerate(requests_M.tolist()):
        wish, (pieces, length) = asked[request], prompts[request]
        if wish is not None and pieces is not None:
            # Under speculation vLLM may let a prompt of one token that is left have drafts behind it.
            drafts = max(int(ends[request]) - length, 0)
            first, stop = starts[place : place + 2].tolist()
            end = int(ends[request]) - drafts
            last = int(logits[request]) if end == length else None
            readings.append(Reading(pieces, slice(first, stop - drafts), end, wish, last))
    return readings


def targets_of_readings(readings: Sequence[Reading], count: int) -> Any:
    """``[count]``: of each row of the step the token whose log-probability is read, -1 where none is."""
    targets_C = np.full(count, -1, dtype=np.int64)
    for reading in readings:
        size = reading.rows.stop - reading.rows.start
        targets_C[reading.rows] = targets_of(reading.asked, reading.end, size)
    return targets_C


def score_wish(asked: EngineInput) -> tuple[Steering, list[int]]:
    """What an engine that generates is asked for a prompt's score: a wish, and token ids to add one to."""
    if isinstance(asked, ScoredTokens):
        return Steering(scored=True, rows=asked.asked), asked.token_ids
    return Steering(scored=True), asked


def received(rows: Any, asked: EngineInput, num_layers: int) -> Any:
    """What came with that token: norms ``[L, 7]`` of a prompt, or the RowScores of ScoredTokens.

    Raises EngineError for scores that did not come.
    """
    if rows is None:
        raise EngineError("the engine gave no scores")
    numbers = torch.from_numpy(rows[0])
    return row_scores(numbers, asked, num_layers) if isinstance(asked, ScoredTokens) else numbers


def with_rows(scores_QN: Tensor, values: RowValues, readings: Sequence[Reading]) -> Tensor:
    """The scores of Q rows of logits; in place of those of prompts that end in this step how many numbers
    they have, and these."""
    for reading in readings:
        reading.pieces.add(values.cut(reading.rows), reading.end, reading.asked)
    whole = {
        reading.logits: reading.pieces.whole(reading.end, reading.asked)
        for reading in readings
        if reading.logits is not None
    }
    most = max([scores_QN.shape[1], *(len(numbers) + 1 for numbers in whole.values())])
    wide = torch.nn.functional.pad(scores_QN, (0, most - scores_QN.shape[1]))
    for row, numbers in whole.items():
        wide[row, 0] = len(numbers)
        wide[row, 1 : len(numbers) + 1] = numbers
    return wide
