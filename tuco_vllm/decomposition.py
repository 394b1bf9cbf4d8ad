"""The paper's decomposition in torch: split a layer's update, accumulate it, measure it, steer it.

Source: Nuti, Franzmeyer, Henriques, "TuCo: Measuring the Contribution of Fine-Tuning to Individual
Responses of LLMs", ICML 2025, arXiv 2506.23423. A pre-norm decoder layer adds an update to its residual
stream (§3): ``f(x) = A(x) + M(x + A(x))``, attention plus MLP, norms included. Both models' layers are
applied to the *same* x, FT's stream:

    PTC_l = f_PT(x_l)                   (§4.3)
    FTC_l = f_FT(x_l) - f_PT(x_l)       (§4.3; exact by Prop. D.3)

Everything here works in float32 or float64 (whatever wider type it is given), never in the model's 16 bits:
near-equal models make FTC a difference of near-equal numbers. A and M come in apart for the same reason;
taking f as "layer output minus layer input" in 16 bits would lose the small update in the large stream.

Shape suffixes: R rows (tokens that are scored), L layers, H hidden size.
"""

import torch
from torch import Tensor

NORM_COLUMNS = ("ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms")
"""What the last axis of every norms tensor ``[..., L, 4]`` holds, in this order (records carry the names)."""


def update(attention_RH: Tensor, mlp_RH: Tensor) -> Tensor:
    """f = A + M (§3) in at least float32. ``[R, H]``."""
    wide = torch.promote_types(attention_RH.dtype, torch.float32)
    return attention_RH.to(wide) + mlp_RH.to(wide)


def accumulate_contribution(
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention_RH: Tensor,
    ft_mlp_RH: Tensor,
    cum_ptc_RH: Tensor,
    cum_ftc_RH: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of Algorithm 1: the new sums and this layer's four L1 norms (§4.3, §4.4).

    The four outputs of the two layers are ``[R, H]`` in the model's dtype; the running sums
    ``P_l = sum_{s<l} PTC_s`` and ``F_l`` are ``[R, H]`` in float32 or wider. Returns
    ``(P_{l+1}, F_{l+1}, norms_R4)`` with the norms in NORM_COLUMNS' order:
    ``|PTC_l|_1, |FTC_l|_1, |P_{l+1}|_1, |F_{l+1}|_1``.
    """
    ptc_RH = update(pt_attention_RH, pt_mlp_RH)
    ftc_RH = update(ft_attention_RH, ft_mlp_RH) - ptc_RH
    cum_ptc_RH = cum_ptc_RH + ptc_RH
    cum_ftc_RH = cum_ftc_RH + ftc_RH
    return cum_ptc_RH, cum_ftc_RH, l1_norms(ptc_RH, ftc_RH, cum_ptc_RH, cum_ftc_RH)


def steer(
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention_RH: Tensor,
    ft_mlp_RH: Tensor,
    alpha_R: Tensor,
) -> Tensor:
    """FT's MLP output, corrected so that the layer adds PTC + alpha FTC to the stream (Def. 5.1).

    ``M_FT - (1 - alpha) FTC`` with FTC in float32 or wider, ``[R, H]`` in the model's dtype; rows with
    alpha = 1 are ``ft_mlp_RH`` itself. All inputs ``[R, H]``, alpha ``[R]``.
    """
    ftc_RH = update(ft_attention_RH, ft_mlp_RH) - update(pt_attention_RH, pt_mlp_RH)
    alpha_R1 = alpha_R.unsqueeze(-1)
    steered_RH = (ft_mlp_RH - (1.0 - alpha_R1) * ftc_RH).to(ft_mlp_RH.dtype)
    return torch.where(alpha_R1 == 1.0, ft_mlp_RH, steered_RH)


def l1_norms(*vectors_RH: Tensor) -> Tensor:
    """L1 norms over the hidden axis, one column a vector: n tensors ``[R, H]`` -> ``[R, n]``."""
    return torch.stack([vector.abs().sum(dim=-1) for vector in vectors_RH], dim=-1)
