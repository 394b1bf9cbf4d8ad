"""The float64 oracle's verdict on completions, in float32 as ``steered`` has it, in bfloat16 by a factor.

In bfloat16 a tie between two tokens falls either way, and no two batches round alike. So a completion is
judged by what it was computed from: on its own tokens, its norms may be off by twice what Hugging Face is in
bfloat16, and a greedy token may be second best by no more than such errors of two logits.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import steered
import tolerances
import torch
from torch import Tensor
from truth import norm_errors, oracle

from tuco_vllm.steering import Scale, parse_scale

Pair = tuple[str, str]


class Case(NamedTuple):
    """A request and what came of it. Alpha None asked for nothing, and is plain FT."""

    prompt: list[int]
    alpha: steered.Alpha | None
    completion: Any

    @property
    def chosen(self) -> tuple[list[int], steered.Alpha, list[int]]:
        """What decides its truth: prompt, alpha, tokens."""
        return self.prompt, 1.0 if self.alpha is None else self.alpha, list(self.completion.token_ids)


def assert_true(pair: Pair, dtype: str, cases: Sequence[Case]) -> None:
    """Greedy completions are the oracle's: their tokens, and where asked for their norms ``[n, L, 7]``.

    In bfloat16 give it many at once: of one request, what Hugging Face is off by is a matter of luck.
    """
    assert all((case.completion.tuco is None) == (case.alpha is None) for case in cases)
    assert_scored(pair, dtype, [case for case in cases if case.alpha is not None])
    short, own = [], []
    for case in cases:
        logits = steered.logits(pair, *case.chosen)
        tokens = case.chosen[2]
        if dtype == "float32":
            assert logits.argmax(dim=-1).tolist() == tokens, f"alpha {case.alpha}: not the oracle's tokens"
            continue
        own.append((_bfloat16(pair, *case.chosen)[1] - logits).abs().max())
        short.append((logits.max(dim=-1).values - logits[range(len(tokens)), tokens]).max())
    if short:
        bound = 2 * tolerances.SIXTEEN_BIT_FACTOR * max(own)
        assert max(short) <= bound, f"a token {max(short):.3g} below the best; rounding explains {bound:.3g}"


def assert_scored(pair: Pair, dtype: str, cases: Sequence[Case]) -> None:
    """The norms are the oracle's for the tokens they came with, however those were chosen."""
    errors, own = [], []
    for case in cases:
        norms = case.completion.tuco_norms
        if dtype == "float32":
            steered.assert_scored(pair, *case.chosen, norms)
            continue
        prompt, alpha, tokens = case.chosen
        truth = steered._rows(pair, (*prompt, *tokens[:-1]), alpha)[0][len(prompt) - 1 :]
        errors.append(norm_errors(torch.as_tensor(norms), truth).max())
        own.append(norm_errors(_bfloat16(pair, *case.chosen)[0], truth).max())
    if errors:
        bound = tolerances.SIXTEEN_BIT_FACTOR * max(own)
        assert max(errors) <= bound, f"norms are {max(errors):.3g} off; rounding explains {bound:.3g}"


def _bfloat16(pair: Pair, prompt: Any, alpha: steered.Alpha, tokens: Any) -> tuple[Tensor, Tensor]:
    """Hugging Face's norms ``[n, L, 7]`` and logits ``[n, V]`` in bfloat16 arithmetic."""
    norms, hidden = _bfloat16_rows(pair, (*prompt, *tokens[:-1]), parse_scale(alpha))
    return norms[len(prompt) - 1 :], hidden[len(prompt) - 1 :].double() @ steered._head(pair[1]).T


@lru_cache(maxsize=1024)
def _bfloat16_rows(pair: Pair, sequence: tuple[int, ...], scale: Scale) -> tuple[Tensor, Tensor]:
    return oracle(*pair, torch.bfloat16).steer(sequence, *scale)


def first_difference(ours: Any, stock: Any) -> tuple[int, float] | None:
    """Where two greedy completions part, and how much less likely stock holds our token there; None if they
    do not. Both came with logprobs."""
    pairs = zip(ours.token_ids, stock.token_ids, strict=True)
    for place, (mine, theirs) in enumerate(pairs):
        if mine != theirs:
            said = stock.logprobs[place]
            gap = said[theirs].logprob - said[mine].logprob if mine in said else float("inf")
            return place, gap
    return None
