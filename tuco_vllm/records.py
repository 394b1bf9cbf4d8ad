"""The one interchange: what goes into a scoring run, what comes out, and how it lies in Parquet.

source row --(corpus)--> prompt --(api, engine)--> TucoScore --(corpus)--> a row of part-*.parquet
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from tuco_vllm import metrics
from tuco_vllm.score_requests import NO_MORE, EngineInput, MoreScores, ScoredTokens

SCHEMA_VERSION = "2"

Messages = list[dict[str, Any]]
"""One chat: ``[{"role": "user", "content": "..."}, ...]``."""

PromptInput = str | list[int] | Messages
"""What can be scored: a raw string, token ids as they are, or a chat (through FT's template)."""

ResponseInput = str | list[int]
"""What may follow a prompt: a text, which gets no end token, or token ids."""


@dataclass(frozen=True, slots=True)
class TucoScore:
    """TuCo of one prompt at its last token, and the norms it is made of.

    The lists have one float per layer (L); ``cum_*`` are norms of running sums, so
    ``ptc_norm == cum_ptc_norms[-1]`` is the norm of the sum, not the sum of norms (paper §4.4). ``cosine`` is
    that of the sums P and F over all layers, ``cosines`` after each. ``cancellation`` and cosines are None
    where there is nothing to divide by. ``tuco`` is NaN where a model overflowed, as float16 may; in a corpus
    that is the row's error, over HTTP null.
    """

    tuco: float
    preco: float
    ptc_norm: float
    ftc_norm: float
    beta_max: float
    tuco_l2: float
    path_tuco: float
    cosine: float | None
    cancellation: float | None
    ptc_norms: list[float]
    ftc_norms: list[float]
    cum_ptc_norms: list[float]
    cum_ftc_norms: list[float]
    cosines: list[float | None]
    num_prompt_tokens: int
    response_token_ids: list[int] | None = None
    """What ``response_tucos`` are of; both are None where there was no response."""
    response_tucos: list[float] | None = None
    """TuCo of the forward pass that produced each token of the response; the first is ``tuco``."""
    prompt_tucos: list[float] | None = None
    """TuCo at every token of the prompt; the last is ``tuco``. None unless a trace was asked for."""
    output_co: float | None = None
    """OutputCo at the prompt's last token. None unless it was asked for."""
    response_logps_ft: list[float] | None = None
    """FT's log-probability of each token of the response. None unless the reward was asked for."""
    response_logps_pt: list[float] | None = None
    """PT's, by its own embedding, layers, last norm and head."""

    @property
    def response_tokens(self) -> int | None:
        """How many tokens a response has, if there is one."""
        return None if self.response_token_ids is None else len(self.response_token_ids)

    @property
    def response_tuco(self) -> float | None:
        """The mean over a response's tokens, if there is one."""
        tucos = self.response_tucos
        return None if tucos is None else math.fsum(tucos) / len(tucos)

    @property
    def logp_ft(self) -> float | None:
        """FT's log-probability of the response."""
        return _sum(self.response_logps_ft)

    @property
    def logp_pt(self) -> float | None:
        """PT's log-probability of the response."""
        return _sum(self.response_logps_pt)

    @property
    def relative_reward(self) -> float | None:
        """log p_FT - log p_PT of the response: the relative reward of two models (arXiv 2306.01804)."""
        if self.logp_ft is None or self.logp_pt is None:
            return None
        return self.logp_ft - self.logp_pt

    @property
    def is_finite(self) -> bool:
        """Whether no number overflowed."""
        numbers = [self.tuco, *(self.response_tucos or ()), *(self.prompt_tucos or ())]
        numbers += [*(self.response_logps_ft or ()), *(self.response_logps_pt or ())]
        numbers.append(0.0 if self.output_co is None else self.output_co)
        return all(map(math.isfinite, numbers))

    @classmethod
    def of(
        cls,
        answers: Sequence[Any],
        inputs: Sequence[EngineInput],
        response: list[int] | None,
        more: MoreScores,
    ) -> "TucoScore":
        """From what an engine answers to each of ``engine_inputs``: norms ``[L, 7]`` to a prompt's token ids,
        RowScores to ScoredTokens; with the ``response`` in them, if there is one."""
        [scored, *others], tokens = answers, inputs[0]
        if not isinstance(tokens, ScoredTokens):
            return cls.from_norms(scored, len(tokens))
        asked = tokens.asked
        score = cls.from_norms(scored.norms, asked.last + 1)
        tucos, place = scored.tucos.tolist(), asked.last - asked.first
        tucos[place] = score.tuco  # the same number, not rounded to float32
        score = replace(
            score,
            response_token_ids=response,
            response_tucos=tucos[place:] if response else None,
            prompt_tucos=tucos[: place + 1] if more.trace else None,
        )
        for other in others:
            if other.state is not None:
                difference = abs(scored.state - other.state).sum().item()
                output_co = metrics.output_co(abs(other.state).sum().item(), difference)
                score = replace(score, output_co=output_co)
            else:
                ft, pt = scored.logps.tolist(), other.logps.tolist()
                score = replace(score, response_logps_ft=ft, response_logps_pt=pt)
        return score

    @classmethod
    def from_norms(cls, norms_L7: ArrayLike, num_prompt_tokens: int) -> "TucoScore":
        """From one prompt's norms ``[L, 7]`` in the order of ``decomposition.NORM_COLUMNS``."""
        numbers = {name: values.tolist() for name, values in numbers_of(norms_L7).items()}
        for name in ("cosine", "cancellation"):
            numbers[name] = _none_if_nan(numbers[name])
        numbers["cosines"] = [_none_if_nan(value) for value in numbers["cosines"]]
        return cls(**numbers, num_prompt_tokens=num_prompt_tokens)


def numbers_of(norms: ArrayLike) -> dict[str, metrics.Floats]:
    """``SCALARS`` ``[...]`` and ``LAYERS`` ``[..., L]``, by name, from norms ``[..., L, 7]`` of prompts.

    NaN where there is nothing to divide by, and of norms that are not finite.
    """
    wide = np.asarray(norms, np.float64)
    ptc, ftc, cum_ptc, cum_ftc, cum_ptc_l2, cum_ftc_l2, cosines = (wide[..., n] for n in range(7))
    with np.errstate(invalid="ignore"):
        tuco = metrics.tuco(cum_ptc, cum_ftc)
        return {
            "tuco": tuco,
            "preco": 1.0 - tuco,
            "ptc_norm": cum_ptc[..., -1],
            "ftc_norm": cum_ftc[..., -1],
            "beta_max": metrics.beta_max(cum_ptc, cum_ftc),
            "tuco_l2": metrics.tuco_l2(cum_ptc_l2, cum_ftc_l2),
            "path_tuco": metrics.path_tuco(ptc, ftc),
            "cosine": cosines[..., -1],
            "cancellation": metrics.cancellation(ftc, cum_ftc),
            "ptc_norms": ptc,
            "ftc_norms": ftc,
            "cum_ptc_norms": cum_ptc,
            "cum_ftc_norms": cum_ftc,
            "cosines": cosines,
        }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _sum(values: list[float] | None) -> float | None:
    return None if values is None else math.fsum(values)


SCALARS = (
    *("tuco", "preco", "ptc_norm", "ftc_norm", "beta_max"),
    *("tuco_l2", "path_tuco", "cosine", "cancellation"),
)
LAYERS = ("ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms", "cosines")


_FLOATS = pa.list_(pa.float32())


def output_schema(
    *,
    layers: bool = True,
    prompt: bool = True,
    responses: bool = False,
    more: MoreScores = NO_MORE,
    several: bool = False,
) -> pa.Schema:
    """The fixed columns of an output file, in order; the input's other columns follow them.

    Without ``prompt`` the texts of prompts and responses are left out. ``several``: fine-tunes, so each row
    says which.
    """
    columns = [pa.field("id", pa.string(), nullable=False)]
    if prompt:
        columns.append(pa.field("prompt", pa.string()))
    columns.append(pa.field("prompt_tokens", pa.int32()))
    columns += [pa.field(name, pa.float64()) for name in SCALARS]
    if layers:
        columns += [pa.field(name, _FLOATS) for name in LAYERS]
    if responses:
        columns += [pa.field("response", pa.string())] if prompt else []
        columns += [pa.field("response_tokens", pa.int32()), pa.field("response_tuco", pa.float64())]
        columns.append(pa.field("response_tucos", _FLOATS))
        columns.append(pa.field("response_token_ids", pa.list_(pa.int32())))
    if more.trace:
        columns.append(pa.field("prompt_tucos", _FLOATS))
    if more.output_co:
        columns.append(pa.field("output_co", pa.float64()))
    if more.relative_reward:
        columns += [pa.field(name, pa.float64()) for name in ("logp_ft", "logp_pt", "relative_reward")]
        columns += [pa.field(name, _FLOATS) for name in ("response_logps_ft", "response_logps_pt")]
    if several:
        columns.append(pa.field("ft", pa.string()))
    columns.append(pa.field("error", pa.string()))
    return pa.schema(columns)


PART_GLOB = "part-*.parquet"
"""A run's parts, those of earlier versions too."""


def part_name(unit: int, job: str) -> str:
    """The name of the part that a job's unit becomes: by name, parts are in input order."""
    return f"part-{unit:08}-{job}.parquet"


SUCCESS = "_SUCCESS"
STATE = "_tuco"
"""A run's own files (job.json, run.json, log) lie in this folder of the output directory: Parquet readers
skip names that begin with an underscore, so the directory as a whole stays readable as one table."""

RUN_FILE = f"{STATE}/run.json"
"""Settings, counts and timings of a run, for people."""
