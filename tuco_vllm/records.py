"""The one interchange: what goes into a scoring run, what comes out, and how it lies in Parquet.

source row --(corpus)--> prompt --(api, engine)--> TucoScore --(corpus)--> a row of part-*.parquet
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tuco_vllm import metrics

SCHEMA_VERSION = "2"

Messages = list[dict[str, Any]]
"""One chat: ``[{"role": "user", "content": "..."}, ...]``."""

PromptInput = str | list[int] | Messages
"""What can be scored: a raw string, token ids as they are, or a chat (through FT's template)."""


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

    @classmethod
    def from_norms(cls, norms_L7: Sequence[Sequence[float]], num_prompt_tokens: int) -> "TucoScore":
        """From one prompt's norms ``[L, 7]`` in the order of ``decomposition.NORM_COLUMNS``."""
        columns = (list(column) for column in zip(*norms_L7, strict=True))
        ptc, ftc, cum_ptc, cum_ftc, cum_ptc_l2, cum_ftc_l2, cosine = columns
        cosines = [None if math.isnan(value) else value for value in cosine]
        tuco = metrics.tuco(cum_ptc, cum_ftc)
        return cls(
            tuco=tuco,
            preco=1.0 - tuco,
            ptc_norm=cum_ptc[-1],
            ftc_norm=cum_ftc[-1],
            beta_max=metrics.beta_max(cum_ptc, cum_ftc),
            tuco_l2=metrics.tuco_l2(cum_ptc_l2, cum_ftc_l2),
            path_tuco=metrics.path_tuco(ptc, ftc),
            cosine=cosines[-1],
            cancellation=metrics.cancellation(ftc, cum_ftc),
            ptc_norms=ptc,
            ftc_norms=ftc,
            cum_ptc_norms=cum_ptc,
            cum_ftc_norms=cum_ftc,
            cosines=cosines,
            num_prompt_tokens=num_prompt_tokens,
        )


SCALARS = (
    *("tuco", "preco", "ptc_norm", "ftc_norm", "beta_max"),
    *("tuco_l2", "path_tuco", "cosine", "cancellation"),
)
LAYERS = ("ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms", "cosines")


def output_schema(*, layers: bool = True, prompt: bool = True) -> pa.Schema:
    """The fixed columns of an output file, in order; the input's other columns follow them."""
    columns = [pa.field("id", pa.string(), nullable=False)]
    if prompt:
        columns.append(pa.field("prompt", pa.string()))
    columns.append(pa.field("prompt_tokens", pa.int32()))
    columns += [pa.field(name, pa.float64()) for name in SCALARS]
    if layers:
        columns += [pa.field(name, pa.list_(pa.float32())) for name in LAYERS]
    columns.append(pa.field("error", pa.string()))
    return pa.schema(columns)


PART = "part-{:05d}.parquet"
SUCCESS = "_SUCCESS"
STATE = "_tuco"
"""A run's own files (job.json, run.json, lock) lie in this folder of the output directory: Parquet readers
skip names that begin with an underscore, so the directory as a whole stays readable as one table."""
