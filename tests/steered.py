"""Requests that steer, and the judge of what they get: the float64 oracle on the steered stream."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import tiny_models
import tolerances
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from truth import norm_errors, oracle

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def prompts(count: int, *, longest: int = 60, seed: int = 0) -> list[list[int]]:
    """``tiny_models.prompts`` in ids that the tiny tokenizer has."""
    return [[token % 290 for token in p] for p in tiny_models.prompts(count, longest=longest, seed=seed)]


def requests(count: int, *, longest: int = 60, seed: int = 0) -> tuple[list[list[int]], list[float]]:
    """Prompts of many lengths and an alpha for each, in an order that mixes both."""
    alphas = [ALPHAS[(3 * place + seed) % len(ALPHAS)] for place in range(count)]
    return prompts(count, longest=longest, seed=seed), alphas


@cache
def _head(ft: str) -> Tensor:
    return (
        AutoModelForCausalLM.from_pretrained(ft, dtype=torch.float64).get_output_embeddings().weight.detach()
    )


def assert_true(
    pair: tuple[str, str], prompt: Sequence[int], alpha: float, tokens: Sequence[int], norms: Any
) -> None:
    """Greedy ``tokens`` are the oracle's, one by one, and so are the norms ``[n, L, 4]`` they came with."""
    sequence = [*prompt, *tokens[:-1]]
    truth, hidden = oracle(*pair).steer(sequence, alpha)
    first = len(prompt) - 1
    logits = hidden[first:] @ _head(pair[1]).T
    assert logits.argmax(dim=-1).tolist() == list(tokens), f"alpha {alpha}: not the oracle's tokens"
    errors = norm_errors(torch.as_tensor(norms), truth[first:])
    assert errors.max() <= tolerances.NORMS_FLOAT32, f"alpha {alpha}: norms are {errors.max():.3g} off"


def assert_same(a: Any, b: Any, what: str) -> None:
    """Two completions of one request under other circumstances: tokens equal, scores within tolerance."""
    assert list(a.token_ids) == list(b.token_ids), f"{what}: other tokens"
    assert len(a.tuco) == len(b.tuco) == len(a.token_ids), f"{what}: a score for every token"
    assert max(abs(x - y) for x, y in zip(a.tuco, b.tuco, strict=True)) <= tolerances.TUCO_FLOAT32, what
