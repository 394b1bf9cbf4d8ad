"""How far an engine's scores of a pair are from the truth: the floor under which a score means nothing.

The truth is ``Oracle`` in float32, whose weights stay on disk, so that a pair of any size can be examined
where its engine runs. FT scored against itself is no such floor: equal weights round equally, so it gives
nearly 0 while a light fine-tune is measured far too high in 16 bits (L1 norms add rounding up).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tuco_vllm.analysis.rounding import NOTABLE
from tuco_vllm.oracle import Oracle
from tuco_vllm.records import TucoScore


@dataclass(frozen=True)
class Precision:
    """The same prompts scored twice. Arrays have an entry a prompt."""

    dtype: str
    """The engine's, and, where it is another, that of the rows."""
    truth: NDArray[np.float64]
    """TuCo by the reference."""
    error: NDArray[np.float64]
    """The engine's TuCo minus that."""
    norm_error: float
    """The largest error of a layer's norm, relative to the layer's |PTC|_1 + |FTC|_1."""

    @property
    def mean_error(self) -> float:
        """Mean |error|: differences of scores below it are rounding."""
        return float(np.abs(self.error).mean())

    @property
    def bias(self) -> float:
        """Mean error, with its sign: what averages over many prompts do not remove."""
        return float(self.error.mean())

    @property
    def max_error(self) -> float:
        """The largest |error|."""
        return float(np.abs(self.error).max())

    def verdict(self) -> str:
        """What the figures mean for who reads scores."""
        share = self.mean_error / float(self.truth.mean()) if self.truth.any() else 0.0
        text = (
            f"In {self.dtype} a score of this pair is off by {self.mean_error:.1e} in the mean "
            f"({share:.1%} of TuCo), by {self.bias:+.1e} with its sign; "
            f"a layer's norm by {self.norm_error:.1e} at most."
        )
        if share > NOTABLE:
            text += " Smaller differences mean nothing: score with --dtype float32 where they matter."
        return text


def compare(
    scores: Sequence[TucoScore], prompts: Sequence[list[int]], reference: Oracle, dtype: str
) -> Precision:
    """The engine's ``scores`` of ``prompts``, computed in ``dtype``, against ``reference``."""
    truth_NL7 = reference.norms(prompts).double()
    truth_NL4 = truth_NL7[..., :4]
    norms_NL4 = torch.tensor(
        [[s.ptc_norms, s.ftc_norms, s.cum_ptc_norms, s.cum_ftc_norms] for s in scores], dtype=torch.float64
    ).transpose(1, 2)
    relative = (norms_NL4 - truth_NL4).abs() / (truth_NL4[..., :1] + truth_NL4[..., 1:2])
    truths = [
        TucoScore.from_norms(norms, len(ids)) for norms, ids in zip(truth_NL7.tolist(), prompts, strict=True)
    ]
    truth = np.array([score.tuco for score in truths])
    found = np.array([score.tuco for score in scores])
    return Precision(dtype, truth, found - truth, float(relative.max()))
