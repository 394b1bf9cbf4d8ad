"""The paper's decomposition: split a layer's update, accumulate it, measure it.

Source: Nuti, Franzmeyer, Henriques, "TuCo: Measuring the Contribution of Fine-Tuning to Individual
Responses of LLMs", ICML 2025, arXiv 2506.23423. A pre-norm decoder layer adds an update to its residual
stream (§3): ``f(x) = A(x) + M(x + A(x))``, attention plus MLP, norms included. Both models' layers are
applied to the *same* x, FT's stream:

    PTC_l = f_PT(x_l)                   (§4.3)
    FTC_l = f_FT(x_l) - f_PT(x_l)       (§4.3; exact by Prop. D.3)

The executor accumulates them by ``tuco_kernels.accumulate_contribution``, in float32 and from A and M apart,
never in the model's 16 bits: near-equal models make FTC a difference of near-equal numbers, and "layer output
minus layer input" would lose the small update in the large stream. The oracle does it in float64, where the
latter loses nothing. Both report the norms below.

Shape suffixes: R rows (tokens that are scored), L layers, H hidden size.
"""

import torch
from torch import Tensor

NORM_COLUMNS = (
    "ptc_norms",
    "ftc_norms",
    "cum_ptc_norms",
    "cum_ftc_norms",
    "cum_ptc_l2_norms",
    "cum_ftc_l2_norms",
    "cosines",
)
"""What the last axis of every norms tensor ``[..., L, 7]`` holds, in this order (records carry the names).

L1 norms of a layer's contributions and of the sums so far, then the sums' L2 norms and the cosine between
them (NaN where one of them is zero).
"""


def norms(ptc_RH: Tensor, ftc_RH: Tensor, cum_ptc_RH: Tensor, cum_ftc_RH: Tensor) -> Tensor:
    """One layer's norms ``[R, 7]``, in ``NORM_COLUMNS``' order and the vectors' dtype."""
    l1 = [vector.abs().sum(dim=-1) for vector in (ptc_RH, ftc_RH, cum_ptc_RH, cum_ftc_RH)]
    l2 = [vector.square().sum(dim=-1).sqrt() for vector in (cum_ptc_RH, cum_ftc_RH)]
    cosine = (cum_ptc_RH * cum_ftc_RH).sum(dim=-1) / l2[0] / l2[1]
    return torch.stack([*l1, *l2, cosine], dim=-1)
