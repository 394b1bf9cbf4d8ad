"""Norms -> scalars. A metric is a pure function of stored norms, so it is recomputed without a model.

A new metric goes here. Each takes arrays ``[..., L]`` of norms in layer order, of one prompt or of many:
``ptc_norms[..., l] = |PTC_l|_1`` and ``ftc_norms[..., l] = |FTC_l|_1`` of the layers,
``cum_ptc_norms[..., l] = |P_{l+1}|_1`` and ``cum_ftc_norms[..., l] = |F_{l+1}|_1`` of the sums so far,
0 <= l < L (paper §4.4; arXiv 2506.23423). Of norms that are infinite or NaN, as an overflow leaves them, it
is NaN.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Norm = TypeVar("Norm", float, Floats)


def fraction(ftc_norm: Norm, ptc_norm: Norm) -> Norm:
    """ftc / (ptc + ftc): in [0, 1]; 0/0 is 0, as a model that changes nothing contributes nothing."""
    total = ptc_norm + ftc_norm
    return ftc_norm / (total + (total == 0.0))  # no norm is negative: where the sum is 0, ftc is


def tuco(cum_ptc_norms: Floats, cum_ftc_norms: Floats) -> Floats:
    """Tuning contribution, Def. 4.3: beta_L on the prompt's last token."""
    return fraction(cum_ftc_norms[..., -1], cum_ptc_norms[..., -1])


def beta_max(cum_ptc_norms: Floats, cum_ftc_norms: Floats) -> Floats:
    """beta of §4.4: the largest beta_l, 1 <= l <= L. It bounds |x_L^FT - x_L^PT|_1 (Prop. 4.2)."""
    return fraction(cum_ftc_norms, cum_ptc_norms).max(-1)


def tuco_l2(cum_ptc_l2_norms: Floats, cum_ftc_l2_norms: Floats) -> Floats:
    """Def. 4.3 with L2 norms, which a few large dimensions dominate."""
    return tuco(cum_ptc_l2_norms, cum_ftc_l2_norms)


def path_tuco(ptc_norms: Floats, ftc_norms: Floats) -> Floats:
    """Def. 4.3 with sums of norms in place of norms of sums: what layers undo counts, too."""
    return fraction(ftc_norms.sum(-1), ptc_norms.sum(-1))


def cancellation(ftc_norms: Floats, cum_ftc_norms: Floats) -> Floats:
    """1 - |F_L|_1 / sum of |FTC_l|_1: how much of fine-tuning's work in the layers undoes itself, from 0 (all
    layers push one way) to 1 (nothing is left). NaN where no layer changes anything."""
    return 1.0 - cum_ftc_norms[..., -1] / ftc_norms.sum(-1)


def output_co(pt_final_norm: float, difference_norm: float) -> float:
    """OutputCo, §5.5: |x_L^FT - x_L^PT|_1 against |x_L^PT|_1; x^PT is the alpha = 0 stream."""
    return fraction(difference_norm, pt_final_norm)
