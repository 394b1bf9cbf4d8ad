"""Requests that steer, and the judge of what they get: the float64 oracle on the steered stream."""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import tiny_models
import tolerances
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from truth import norm_errors, oracle

from tuco_vllm.steering import ANY_NUMBER, Scale, parse_scale

Alpha = float | dict[str, Any]


def in_layers(alpha: float, first: int, last: int) -> Alpha:
    """``alpha`` in these layers, FT's in the others."""
    return {"value": alpha, "layers": [first, last]}


RANGED = (in_layers(0.0, 1, 2), in_layers(0.5, 0, 0), in_layers(1.5, 1, 1))
ALPHAS = (0.0, 0.25, RANGED[0], RANGED[1], 0.5, 0.75, 1.0, 1.25, RANGED[2], 1.5)


def prompts(count: int, *, longest: int = 60, seed: int = 0) -> list[list[int]]:
    """``tiny_models.prompts`` in ids that the tiny tokenizer has."""
    return [[token % 290 for token in p] for p in tiny_models.prompts(count, longest=longest, seed=seed)]


def requests(count: int, *, longest: int = 60, seed: int = 0) -> tuple[list[list[int]], list[Alpha]]:
    """Prompts of many lengths and an alpha for each, in an order that mixes both."""
    alphas = [ALPHAS[(3 * place + seed) % len(ALPHAS)] for place in range(count)]
    return prompts(count, longest=longest, seed=seed), alphas


@cache
def _head(ft: str) -> Tensor:
    return (
        AutoModelForCausalLM.from_pretrained(ft, dtype=torch.float64).get_output_embeddings().weight.detach()
    )


def logits(pair: tuple[str, str], prompt: Sequence[int], alpha: Alpha, tokens: Sequence[int]) -> Tensor:
    """What the oracle would have chosen each of the n ``tokens`` after ``prompt`` from: ``[n, V]``."""
    return _rows(pair, (*prompt, *tokens[:-1]), alpha)[1][len(prompt) - 1 :] @ _head(pair[1]).T


def greedy(pair: tuple[str, str], prompt: Sequence[int], alpha: Alpha, count: int) -> list[int]:
    """The ``count`` tokens that the oracle completes ``prompt`` with."""
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(logits(pair, [*prompt, *tokens], alpha, [0])[-1].argmax()))
    return tokens


def _rows(pair: tuple[str, str], sequence: tuple[int, ...], alpha: Alpha) -> tuple[Tensor, Tensor]:
    return _steered(pair, sequence, parse_scale(alpha, ANY_NUMBER))


@lru_cache(maxsize=1024)  # the same requests come back from a warm cache, and are judged again
def _steered(pair: tuple[str, str], sequence: tuple[int, ...], scale: Scale) -> tuple[Tensor, Tensor]:
    return oracle(*pair).steer(sequence, *scale)


def assert_true(
    pair: tuple[str, str], prompt: Sequence[int], alpha: Alpha, tokens: Sequence[int], norms: Any
) -> None:
    """Greedy ``tokens`` are the oracle's, one by one, and so are the norms ``[n, L, 7]`` they came with."""
    assert_greedy(pair, prompt, alpha, tokens)
    assert_scored(pair, prompt, alpha, tokens, norms)


def assert_greedy(pair: tuple[str, str], prompt: Sequence[int], alpha: Alpha, tokens: Sequence[int]) -> None:
    """The ``tokens`` are the oracle's, one by one: all there is to judge where no scores were asked for."""
    chosen = logits(pair, prompt, alpha, tokens).argmax(dim=-1).tolist()
    assert chosen == list(tokens), f"alpha {alpha}: not the oracle's tokens"


def assert_scored(
    pair: tuple[str, str], prompt: Sequence[int], alpha: Alpha, tokens: Sequence[int], norms: Any
) -> None:
    """The norms ``[n, L, 7]`` are the oracle's for these ``tokens``, however they were chosen."""
    truth = _rows(pair, (*prompt, *tokens[:-1]), alpha)[0][len(prompt) - 1 :]
    errors = norm_errors(torch.as_tensor(norms), truth)
    assert errors.max() <= tolerances.NORMS_FLOAT32, f"alpha {alpha}: norms are {errors.max():.3g} off"


def assert_sampled(
    pair: tuple[str, str],
    prompt: Sequence[int],
    alpha: Alpha,
    tokens: Sequence[int],
    logprobs: Sequence[float],
) -> None:
    """The ``logprobs`` of ``tokens`` are the oracle's, as near as final hidden rows are."""
    hidden = _rows(pair, (*prompt, *tokens[:-1]), alpha)[1][len(prompt) - 1 :]
    # A logit's error is at most its row's times its column of the head; a logprob has the errors of two.
    row = tolerances.FINAL_HIDDEN["float32"] * hidden.norm(dim=-1)
    bound = 2 * row * _head(pair[1]).norm(dim=-1).max()
    true = logits(pair, prompt, alpha, tokens).log_softmax(dim=-1)[range(len(tokens)), list(tokens)]
    errors = (torch.tensor(list(logprobs)).double() - true).abs()
    assert (errors <= bound).all(), f"alpha {alpha}: logprobs are {errors.max():.3g} off"


def assert_same(a: Any, b: Any, what: str) -> None:
    """Two completions of one request under other circumstances: tokens equal, scores within tolerance."""
    assert list(a.token_ids) == list(b.token_ids), f"{what}: other tokens"
    assert len(a.tuco) == len(b.tuco) == len(a.token_ids), f"{what}: a score for every token"
    assert max(abs(x - y) for x, y in zip(a.tuco, b.tuco, strict=True)) <= tolerances.TUCO_FLOAT32, what


def assert_round_is_true(pair, requests: list[dict[str, Any]], completions: list[list[Any]]) -> None:
    """Every request of a round against the oracle. Those without an alpha are plain FT and have no scores,
    nor have those with ``"tuco": False``."""
    for request, [completion] in zip(requests, completions, strict=True):
        prompt, alpha = request["prompt"], request["alpha"]
        tokens, norms = completion["tokens"], completion["norms"]
        if alpha is None or not request.get("tuco", True):
            assert norms is None
            assert_greedy(pair, prompt, 1.0 if alpha is None else alpha, tokens)
        else:
            assert_true(pair, prompt, alpha, tokens, norms)
