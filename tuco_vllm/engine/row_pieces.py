"""A request's scores, put together from its chunks.

Shape suffixes: R rows of a chunk, C rows of a step, L layers, N = 7 norms.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.step_plan import StepPlan
from tuco_vllm.errors import EngineError
from tuco_vllm.records import EngineInput, RowScores, ScoredTokens
from tuco_vllm.steering import Asked, Steering


class RowPieces:
    """One request's scores, chunk by chunk."""

    def __init__(self) -> None:
        self._tucos: dict[int, Tensor] = {}
        self._norms_LN: Tensor | None = None

    def add(self, norms_RLN: Tensor, end: int, asked: Asked) -> None:
        """A chunk's rows, of the positions before ``end``."""
        (first, of_norms), start = asked, end - len(norms_RLN)
        if end <= first:
            return  # the row that stands for none
        # Behind it lies what a preemption took back.
        self._tucos = {place: tucos for place, tucos in self._tucos.items() if place < start}
        self._tucos[start] = _tucos(norms_RLN)
        if start <= of_norms < end:
            self._norms_LN = norms_RLN[of_norms - start].clone()

    def whole(self, end: int, asked: Asked) -> Tensor:
        """``[L * N + n]``: the norms of one row, then n scores. Empty if of the rows from the first one asked
        for to ``end`` any is missing."""
        place = asked[0]
        for start, tucos in sorted(self._tucos.items()):
            if start != place:
                break
            place += len(tucos)
        if place != end or self._norms_LN is None:
            return torch.empty(0)
        scores = [self._tucos[start] for start in sorted(self._tucos)]
        return torch.cat([self._norms_LN.flatten(), *scores])


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
    plan: StepPlan | None,
    asked: Sequence[Asked | None],
    pieces: Sequence[RowPieces | None],
    ends: Any,
    prompt_lengths: Sequence[int],
    num_logits: Any,
) -> list[Reading]:
    """Of N requests in the batch's order: what they ask for, what they have, up to which position the step
    comes, how many tokens their prompts have, and rows of logits."""
    if plan is None:
        return []
    logits = np.cumsum(num_logits) - num_logits
    readings = []
    for place, request in enumerate(plan.requests_M.tolist()):
        wish, own = asked[request], pieces[request]
        if wish is not None and own is not None:
            rows = slice(*plan.scored_starts[place : place + 2].tolist())
            is_last = ends[request] == prompt_lengths[request]
            last = int(logits[request]) if is_last else None
            readings.append(Reading(own, rows, int(ends[request]), wish, last))
    return readings


LOST = -1.0
"""No TuCo: what stands for the score of a row that did not come."""


def score_wish(asked: EngineInput) -> tuple[Steering, list[int]]:
    """What an engine that generates is asked for a prompt's score: a wish, and token ids to add one to."""
    if isinstance(asked, ScoredTokens):
        rows = asked.first_row, asked.prompt_tokens - 1
        return Steering(scored=True, rows=rows), asked.token_ids
    return Steering(scored=True), asked


def received(rows: Any, asked: EngineInput) -> Any:
    """What came with that token: norms ``[L, 7]`` of a prompt, or the RowScores of ScoredTokens.

    Raises EngineError for scores that did not come.
    """
    if rows is None:
        raise EngineError("the engine gave no scores")
    if not isinstance(asked, ScoredTokens):
        return torch.from_numpy(rows[0])
    count = len(asked.token_ids) - asked.first_row
    norms, tucos = torch.from_numpy(rows[0]).split([rows.shape[1] - count, count])
    if (tucos == LOST).any():
        raise EngineError("the engine has lost rows of a request: please report this")
    return RowScores(norms.unflatten(0, (-1, len(NORM_COLUMNS))), tucos)


def with_rows(scores_QN: Tensor, norms_CN: Tensor, readings: Sequence[Reading]) -> Tensor:
    """The scores of Q rows of logits, widened by those of the prompts that end in this step."""
    for reading in readings:
        norms_RLN = norms_CN[reading.rows].unflatten(1, (-1, len(NORM_COLUMNS)))
        reading.pieces.add(norms_RLN, reading.end, reading.asked)
    last = [reading for reading in readings if reading.logits is not None]
    most = max((reading.end - reading.asked[0] for reading in last), default=0)
    wide = torch.nn.functional.pad(scores_QN, (0, most), value=LOST)
    for reading in last:
        scores = reading.pieces.whole(reading.end, reading.asked)
        wide[reading.logits, : len(scores)] = scores
    return wide
