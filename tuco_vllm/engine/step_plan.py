"""Which rows of one engine step PT must compute, for every mix of requests in a batch.

A request needs PT on all of its tokens (alpha != 1), on its last rows only (alpha = 1 with scores), or not at
all; PT's keys and values are needed for all tokens of the first two kinds. What a step costs follows from
what its requests ask for, so the rows are listed per request. An alpha may be for some layers only: PT runs
in those that any request of the step needs, and there for all of them; where a layer is outside a request's
range its alpha is 1.

Index spaces, and the suffix that names each: T tokens of the batch; U the tokens whose PT keys and values are
written; S the rows that PT computes in full; C the rows that are scored, one for each token to be sampled,
and of a prompt those that are asked for; M the requests that need PT, of the batch's N. L layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuco_vllm.steering import Steering

Indices = NDArray[np.int64]


class StepPlan(NamedTuple):
    """Rows of one step. Order is the batch's throughout."""

    requests_M: Indices
    """Places of the requests that need PT."""
    tokens_U: Indices
    """Their tokens, of the batch's T."""
    rows_S: Indices
    """The rows that PT computes, of the batch's T."""
    rows_in_U: Indices
    """The same rows, as places in ``tokens_U``."""
    query_starts: NDArray[np.int32]
    """``[M + 1]``: where each request's rows begin among S."""
    alpha_LS: NDArray[np.float32]
    """The alpha of every row's request, by layer; ``[1, S]`` where it is the same in all of them. Row by row
    in memory: what is compiled takes that for granted."""
    scored_in_S: Indices
    """The rows of C, as places among S."""
    scored_starts: Indices
    """``[M + 1]``: where each request's rows begin among C."""
    sampled_in_C: Indices
    """The rows of C that get logits, as places in C."""
    logits_C: Indices
    """The same rows, as places among the batch's rows of logits."""
    pt_layers: Indices
    """The layers in which PT runs."""
    num_logits: int
    """Rows of logits in the batch."""


def plan_step(
    query_starts: Sequence[int] | NDArray[np.int32],
    num_logits: Sequence[int] | NDArray[np.int32],
    steerings: Sequence[Steering],
    num_layers: int,
    num_rows: NDArray[np.int64] | None = None,
) -> StepPlan | None:
    """The rows of a batch, or None where no request needs PT.

    ``query_starts`` ``[N + 1]`` says where each request's tokens begin; ``num_logits`` ``[N]`` how many of
    its last tokens get logits (1, or 1 + drafts under speculation); ``steerings`` ``[N]`` what it asks for;
    ``num_rows`` ``[N]`` how many of its last tokens are scored, where those are more.
    """
    places = [place for place, steering in enumerate(steerings) if steering.needs_pt]
    if not places:
        return None
    alpha_M = np.array([steerings[place].alpha for place in places])
    starts = np.asarray(query_starts, dtype=np.int64)
    logits = np.asarray(num_logits, dtype=np.int64)
    requests_M = np.array(places, dtype=np.int64)
    logits_M = logits[requests_M]
    length_M = starts[requests_M + 1] - starts[requests_M]
    scored_M = logits_M if num_rows is None else np.maximum(logits_M, num_rows[requests_M])
    rows_M = np.where(alpha_M != 1.0, length_M, scored_M)  # the last so many of a request's tokens
    alpha_LS, pt_layers = _by_layer([steerings[place] for place in places], alpha_M, rows_M, num_layers)
    u_starts, s_starts, c_starts = _starts(length_M), _starts(rows_M), _starts(scored_M)
    logits_starts = _starts(logits)

    rows_in_U = ranges(u_starts[1:] - rows_M, rows_M)
    tokens_U = ranges(starts[requests_M], length_M)
    return StepPlan(
        requests_M=requests_M,
        tokens_U=tokens_U,
        rows_S=tokens_U[rows_in_U],
        rows_in_U=rows_in_U,
        query_starts=s_starts.astype(np.int32),
        alpha_LS=alpha_LS,
        scored_in_S=ranges(s_starts[1:] - scored_M, scored_M),
        scored_starts=c_starts,
        sampled_in_C=ranges(c_starts[1:] - logits_M, logits_M),
        logits_C=ranges(logits_starts[requests_M], logits_M),
        pt_layers=pt_layers,
        num_logits=int(logits_starts[-1]),
    )


def _by_layer(
    steerings: list[Steering], alpha_M: NDArray[np.float64], rows_M: Indices, num_layers: int
) -> tuple[NDArray[np.float32], Indices]:
    """``StepPlan.alpha_LS`` and ``pt_layers``."""
    pt_layers = np.arange(num_layers)
    ranged = [place for place, steering in enumerate(steerings) if steering.layers is not None]
    if not ranged:
        return np.repeat(alpha_M.astype(np.float32), rows_M)[None], pt_layers
    alpha_LM = np.tile(alpha_M.astype(np.float32), (num_layers, 1))
    is_needed_L = np.full(num_layers, len(ranged) < len(steerings))
    for place in ranged:
        first, last = steerings[place].layers or (0, num_layers - 1)
        alpha_LM[:first, place] = alpha_LM[last + 1 :, place] = 1.0
        first, last = steerings[place].pt_layers or (0, num_layers - 1)
        is_needed_L[first : last + 1] = True
    owner_S = np.repeat(np.arange(len(steerings)), rows_M)
    return alpha_LM.take(owner_S, axis=1), pt_layers[is_needed_L]


def _starts(lengths: Indices) -> Indices:
    """[2, 5, 3] -> [0, 2, 7, 10]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def ranges(first: Indices, lengths: Indices) -> Indices:
    """Where several ranges lie: first [4, 9], lengths [2, 3] -> [4, 5, 9, 10, 11]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - lengths), lengths)
