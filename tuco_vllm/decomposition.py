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

NORM_COLUMNS = ("ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms")
"""What the last axis of every norms tensor ``[..., L, 4]`` holds, in this order (records carry the names)."""


def l1_norms(*vectors_RH: Tensor) -> Tensor:
    """L1 norms over the hidden axis, one column a vector: n tensors ``[R, H]`` -> ``[R, n]``."""
    return torch.stack([vector.abs().sum(dim=-1) for vector in vectors_RH], dim=-1)
