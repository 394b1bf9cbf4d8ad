"""The oracle's norms for tiny pairs, and the comparison every parity test makes."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import tolerances
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.oracle import Oracle, _Float64Stays
from tuco_vllm.records import LAYERS, TucoScore
from tuco_vllm.score_requests import EngineInput, MoreScores, RowScores, ScoredTokens, engine_inputs


@cache
def oracle(pt: str, ft: str, dtype: torch.dtype = torch.float64, rounding: int = 0) -> Oracle:
    """``rounding`` from 1 on: of a 16-bit one whose numbers are rounded otherwise, as in another engine."""
    made = Oracle(pt, ft, dtype=dtype)
    if rounding:
        _round_otherwise(made.ft, rounding)
    return made


def _round_otherwise(model: Any, seed: int) -> None:
    """Move what the first layer gets by up to a unit in the last place, the same in each call."""

    def hook(module: Any, args: Any, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = (2 * torch.rand(x.shape, generator=generator) - 1) * torch.finfo(x.dtype).eps
        return (x.float() * (1 + noise)).to(x.dtype)

    model.get_input_embeddings().register_forward_hook(hook)


def roundings(pair: tuple[str, str]) -> range:
    """How often Hugging Face's own error in 16 bits is looked at: see ``tolerances.ROUTED_ROUNDINGS``."""
    config = oracle(*pair).ft.config
    routed = any(hasattr(config, name) for name in ("num_local_experts", "num_experts"))
    return range(tolerances.ROUTED_ROUNDINGS if routed else 1)


_BATCH = 16
_known: dict[tuple[Any, ...], Tensor] = {}


def true_norms(
    pair: tuple[str, str],
    prompts: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float64,
    rounding: int = 0,
) -> Tensor:
    """The oracle's ``[N, L, 7]``, each prompt once a session, in batches of like lengths."""
    keys = [(*pair, dtype, rounding, tuple(prompt)) for prompt in prompts]
    missing = sorted({key for key in keys if key not in _known}, key=lambda key: len(key[-1]))
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        _known.update(
            zip(batch, oracle(*pair, dtype, rounding).norms([key[-1] for key in batch]), strict=True)
        )
    return torch.stack([_known[key] for key in keys])


def norm_errors(norms: Tensor, truth: Tensor) -> Tensor:
    """Errors ``[N, L, 7]`` (or 5): of L1 norms relative to |PTC_l| + |FTC_l|, of L2 norms to |P| + |F|, of a
    cosine to (|P| + |F|) / |F|, by which an error of F, the difference, turns it; 0 where there is none."""
    l1, l2 = (truth[..., first : first + 1] + truth[..., first + 1 : first + 2] for first in (0, 4))
    scale = torch.cat([l1.expand(*l1.shape[:-1], 4), l2, l2, l2 / truth[..., 5:6]], dim=-1)
    if norms.shape[-1] == len(LAYERS):  # of an answer, which has no L2 norms
        shown = [NORM_COLUMNS.index(name) for name in LAYERS]
        truth, scale = truth[..., shown], scale[..., shown]
    errors = (norms.double() - truth).abs() / scale
    return errors.masked_fill(norms.isnan() & truth.isnan(), 0.0)


def tuco(norms: Tensor) -> Tensor:
    last = norms[:, -1].double()
    return last[:, 3] / (last[:, 2] + last[:, 3])


def assert_close(norms: Tensor, pair: tuple[str, str], prompts: Sequence[Sequence[int]], dtype: str) -> None:
    """The engine's norms ``[N, L, 7]`` are the oracle's, to what the dtype allows (see ``tolerances``)."""
    truth = true_norms(pair, prompts)
    assert norms.shape == truth.shape
    errors, tuco_errors = norm_errors(norms, truth), (tuco(norms) - tuco(truth)).abs()
    assert torch.isfinite(errors).all()
    if dtype == "float32":
        assert errors.max() <= tolerances.NORMS_FLOAT32, _worst(errors, prompts)
        assert tuco_errors.max() <= tolerances.TUCO_FLOAT32, _worst(tuco_errors, prompts)
        return
    factor = tolerances.SIXTEEN_BIT_FACTOR
    own = [true_norms(pair, prompts, getattr(torch, dtype), each) for each in roundings(pair)]
    own_errors = max(norm_errors(each, truth).max() for each in own)
    assert errors.max() <= factor * own_errors, _worst(errors, prompts)
    own_tuco = max((tuco(each) - tuco(truth)).abs().max() for each in own)
    assert tuco_errors.max() <= factor * own_tuco, _worst(tuco_errors, prompts)


@cache
def true_rows(
    pair: tuple[str, str],
    token_ids: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    rounding: int = 0,
) -> Tensor:
    """TuCo at every token, by the oracle."""
    return tuco(oracle(*pair, dtype, rounding).steer(token_ids, 1.0)[0])


def assert_rows_close(
    found: Sequence[RowScores], asked: Sequence[ScoredTokens], pair: tuple[str, str], dtype: str
) -> None:
    """The norms at every prompt's end and every row's TuCo are the oracle's."""
    prompts = [wish.token_ids[: wish.asked.last + 1] for wish in asked]
    assert_close(torch.stack([scores.norms for scores in found]), pair, prompts, dtype)

    def rows(*of: Any) -> Tensor:
        return torch.cat([true_rows(pair, tuple(wish.token_ids), *of)[wish.asked.first :] for wish in asked])

    truth, allowed = rows(torch.float64), tolerances.TUCO_FLOAT32
    if dtype != "float32":
        own = [(rows(getattr(torch, dtype), each) - truth).abs().max() for each in roundings(pair)]
        allowed = tolerances.SIXTEEN_BIT_FACTOR * float(max(own))
    errors = (torch.cat([scores.tucos for scores in found]).double() - truth).abs()
    assert errors.max() <= allowed, f"row {int(errors.argmax())} of {len(errors)} is {errors.max():.3g} off"


def read(prompt: list[int], answer: list[int] | None, *, trace: bool = False) -> EngineInput:
    """What an engine is asked for a prompt's score and a response's."""
    return engine_inputs(prompt, answer, MoreScores(trace=trace))[0]


@cache
def _whole(directory: str, dtype: torch.dtype, rounding: int = 0) -> Any:
    made = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    if rounding:
        _round_otherwise(made, rounding)
    return made


@cache
def true_log_probs(
    directory: str,
    prompt: tuple[int, ...],
    response: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    rounding: int = 0,
) -> Tensor:
    """Of every token of a response, by Hugging Face's whole model."""
    with torch.inference_mode(), _Float64Stays():
        logits = _whole(directory, dtype, rounding)(torch.tensor([prompt + response])).logits[0].double()
    rows = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
    return rows.gather(1, torch.tensor(response)[:, None])[:, 0]


@cache
def true_output_co(
    pair: tuple[str, str], prompt: tuple[int, ...], dtype: torch.dtype = torch.float64, rounding: int = 0
) -> float:
    return oracle(*pair, dtype, rounding).output_co(prompt)


def assert_own_streams_close(
    scores: Sequence[TucoScore],
    texts: Sequence[tuple[list[int], list[int]]],
    pair: tuple[str, str],
    dtype: str,
) -> None:
    """OutputCo of the prompts and both models' log-probabilities of the responses are the truth."""

    def figures(*of: Any) -> tuple[Tensor, Tensor]:
        keys = [(tuple(prompt), tuple(response)) for prompt, response in texts]
        logps = [true_log_probs(side, *key, *of) for side in pair[::-1] for key in keys]
        return torch.tensor([true_output_co(pair, prompt, *of) for prompt, _ in keys]), torch.cat(logps)

    of_ft, of_pt = ([getattr(s, f"response_logps_{side}") for s in scores] for side in ("ft", "pt"))
    found = (
        torch.tensor([s.output_co for s in scores]),
        torch.tensor([logp for of_one in of_ft + of_pt for logp in of_one]),
    )
    limits = [tolerances.OUTPUT_CO_FLOAT32, tolerances.LOG_PROB_FLOAT32]
    if dtype != "float32":
        own = [figures(getattr(torch, dtype), each) for each in roundings(pair)]
        limits = [
            tolerances.SIXTEEN_BIT_FACTOR * max(float((each[n] - exact).abs().max()) for each in own)
            for n, exact in enumerate(figures(torch.float64))
        ]
    for name, numbers, truth, limit in zip(
        ("OutputCo", "log p"), found, figures(torch.float64), limits, strict=True
    ):
        errors = (numbers.double() - truth).abs()
        assert errors.max() <= limit, (
            f"{name} {int(errors.argmax())} of {len(errors)} is {errors.max():.3g} off"
        )


def _worst(errors: Tensor, prompts: Sequence[Sequence[int]]) -> str:
    place = int(errors.flatten(1).max(dim=1).values.argmax() if errors.dim() > 1 else errors.argmax())
    return f"worst: {errors.max():.3g}, prompt {place} of {len(prompts[place])} tokens"
