"""Scores as extra columns of vLLM's logprobs, from the sampler in a worker to the scheduler.

Of what a worker returns for every sampled token, the logprobs are what already gets through all of vLLM
right: the asynchronous copy off the device, the filter of rejected drafts, the transport between processes.
So norms ``[rows, 7 L]`` ride as columns behind the real logprobs, known by a token id that no vocabulary has;
the scheduler cuts them off before anybody reads logprobs. In place of norms there may be all that is read of
a prompt's rows (``row_pieces.with_rows``).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.compat import LogprobsLists, LogprobsTensors

COLUMN = -1_979_339_339
"""The "token id" of a column of scores."""


def append_scores(
    logprobs: LogprobsTensors | None, scores: Tensor, cu_num_tokens: list[int] | None = None
) -> LogprobsTensors:
    """``logprobs`` of R rows, or none, with the columns of ``scores`` ``[R, 7 L]`` behind its own.

    ``cu_num_tokens`` says, where there were no logprobs, at which row each request's tokens begin.
    """
    ids = torch.full(scores.shape, COLUMN, dtype=torch.int32, device=scores.device)
    if logprobs is None:
        ranks = torch.zeros(len(scores), dtype=torch.int32, device=scores.device)
        return LogprobsTensors(ids, scores, ranks, cu_num_tokens)
    own_ids, own = logprobs.logprob_token_ids, logprobs.logprobs
    return logprobs._replace(
        logprob_token_ids=torch.cat([own_ids, ids.to(own_ids.dtype)], dim=1),
        logprobs=torch.cat([own, scores.to(own.dtype)], dim=1),
    )


def split_scores(logprobs: LogprobsLists | None) -> tuple[LogprobsLists | None, NDArray[np.float32] | None]:
    """What ``append_scores`` joined: real logprobs (None if there were none) and scores ``[R, 7 L]``."""
    if logprobs is None or logprobs.logprob_token_ids.size == 0:
        return logprobs, None
    width = int((logprobs.logprob_token_ids[0] == COLUMN).sum())
    if width == 0:
        return logprobs, None
    scores = logprobs.logprobs[:, -width:]
    if width == logprobs.logprobs.shape[1]:
        return None, scores
    return (
        logprobs._replace(
            logprob_token_ids=logprobs.logprob_token_ids[:, :-width], logprobs=logprobs.logprobs[:, :-width]
        ),
        scores,
    )


def rows_of_request(
    logprobs: Any, scores: NDArray[np.float32], request: int, count: int, layers: int, of_prompt: bool
) -> Any:
    """The scores of a request's ``count`` new tokens, ``[count, L, 7]``; ``of_prompt`` what leaves with the
    one new token of a request that asks for rows of its prompt, ``[1, numbers]``."""
    starts = logprobs.cu_num_generated_tokens
    first = request if starts is None else starts[request]
    if of_prompt:
        return np.ascontiguousarray(scores[first : first + 1, 1 : 1 + int(scores[first, 0])])
    size = layers * len(NORM_COLUMNS)
    return np.ascontiguousarray(scores[first : first + count, :size]).reshape(count, layers, -1)
