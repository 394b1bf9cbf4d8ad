"""Norms -> scalars. A metric is a pure function of stored norms, so it is recomputed without a model.

A new metric goes here. Each takes norms of one prompt, in layer order: ``ptc_norms[l] = |PTC_l|_1`` and
``ftc_norms[l] = |FTC_l|_1`` of the layers, ``cum_ptc_norms[l] = |P_{l+1}|_1`` and
``cum_ftc_norms[l] = |F_{l+1}|_1`` of the sums so far, 0 <= l < L (paper §4.4; arXiv 2506.23423). Of norms
that are infinite or NaN, as an overflow leaves them, it is NaN.
"""

import math
from collections.abc import Sequence


def fraction(ftc_norm: float, ptc_norm: float) -> float:
    """ftc / (ptc + ftc): in [0, 1]; 0/0 is 0, as a model that changes nothing contributes nothing."""
    total = ptc_norm + ftc_norm
    return ftc_norm / total if total != 0.0 else 0.0


def tuco(cum_ptc_norms: Sequence[float], cum_ftc_norms: Sequence[float]) -> float:
    """Tuning contribution, Def. 4.3: beta_L on the prompt's last token."""
    return fraction(cum_ftc_norms[-1], cum_ptc_norms[-1])


def beta_max(cum_ptc_norms: Sequence[float], cum_ftc_norms: Sequence[float]) -> float:
    """beta of §4.4: the largest beta_l, 1 <= l <= L. It bounds |x_L^FT - x_L^PT|_1 (Prop. 4.2)."""
    betas = [fraction(ftc, ptc) for ptc, ftc in zip(cum_ptc_norms, cum_ftc_norms, strict=True)]
    return math.nan if any(map(math.isnan, betas)) else max(betas)


def tuco_l2(cum_ptc_l2_norms: Sequence[float], cum_ftc_l2_norms: Sequence[float]) -> float:
    """Def. 4.3 with L2 norms, which a few large dimensions dominate."""
    return fraction(cum_ftc_l2_norms[-1], cum_ptc_l2_norms[-1])


def path_tuco(ptc_norms: Sequence[float], ftc_norms: Sequence[float]) -> float:
    """Def. 4.3 with sums of norms in place of norms of sums: what layers undo counts, too."""
    return fraction(math.fsum(ftc_norms), math.fsum(ptc_norms))


def cancellation(ftc_norms: Sequence[float], cum_ftc_norms: Sequence[float]) -> float | None:
    """1 - |F_L|_1 / sum of |FTC_l|_1: how much of fine-tuning's work in the layers undoes itself, from 0 (all
    layers push one way) to 1 (nothing is left). None where no layer changes anything."""
    total = math.fsum(ftc_norms)
    return 1.0 - cum_ftc_norms[-1] / total if total != 0.0 else None


def output_co(pt_final_norm: float, difference_norm: float) -> float:
    """OutputCo, §5.5: |x_L^FT - x_L^PT|_1 against |x_L^PT|_1; x^PT is the alpha = 0 stream."""
    return fraction(difference_norm, pt_final_norm)
