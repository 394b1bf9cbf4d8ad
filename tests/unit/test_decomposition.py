"""The maths on cases worked by hand: the paper's Example B.1 (its table) and Appendix A's four layers."""

import pytest
import torch
from torch import Tensor
from tuco_kernels import accumulate_contribution

from tuco_vllm import metrics
from tuco_vllm.decomposition import NORM_COLUMNS, l1_norms
from tuco_vllm.records import LAYERS, TucoScore

H = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)  # any h; |h|_1 = 6
NOTHING = torch.zeros_like(H)


def run(ptc: list[Tensor], ftc: list[Tensor]) -> TucoScore:
    """Algorithm 1 over layers given by their contributions, attention carrying PTC and the MLP FTC."""
    cum_ptc, cum_ftc = NOTHING.clone(), NOTHING.clone()
    norms = torch.zeros(1, len(ptc), 4, dtype=torch.float64)
    for layer, (p, f) in enumerate(zip(ptc, ftc, strict=True)):
        accumulate_contribution(p, NOTHING, p, f, cum_ptc, cum_ftc, norms, layer)
    return TucoScore.from_norms(norms[0].tolist(), num_prompt_tokens=1)


def test_example_b1() -> None:
    """x_0 = 0, f_PT(., 0) = h, f_PT(x, 1) = x, f_FT(., 0) = 2h, f_FT(., 1) = 0."""
    x1 = 2 * H  # after FT's layer 0
    score = run(ptc=[H, x1], ftc=[2 * H - H, NOTHING - x1])
    assert (score.ptc_norm, score.ftc_norm) == (3 * 6.0, 1 * 6.0)  # P = 3h, F = -h
    assert score.tuco == pytest.approx(1 / 4)
    assert score.preco == pytest.approx(3 / 4)
    x2_ft, x2_pt = x1 + NOTHING, H + H  # PT's own stream: h, then h + h
    difference = l1_norms(x2_ft - x2_pt).item()
    assert metrics.output_co(l1_norms(x2_pt).item(), difference) == 0.0


def test_appendix_a_beta_is_not_tuco() -> None:
    """PTC 0, 0, h, -h/2 and FTC h, -h/2, 0, 0: TuCo is 1/2 while beta is 1."""
    score = run(ptc=[NOTHING, NOTHING, H, -H / 2], ftc=[H, -H / 2, NOTHING, NOTHING])
    assert score.tuco == pytest.approx(1 / 2)
    assert score.beta_max == 1.0
    assert score.cum_ftc_norms == [6.0, 3.0, 3.0, 3.0]  # norms of sums, not sums of norms


def test_nothing_over_nothing_is_zero() -> None:
    score = run(ptc=[NOTHING], ftc=[NOTHING])
    assert (score.tuco, score.beta_max, score.preco) == (0.0, 0.0, 1.0)


def test_the_model_with_itself_has_no_contribution() -> None:
    assert run(ptc=[H, -3 * H], ftc=[NOTHING, NOTHING]).tuco == 0.0


def test_sums_are_wider_than_the_models_dtype() -> None:
    """A small update beside a large one survives bfloat16 inputs: f is summed in float32."""
    large, small = torch.full((1, 4), 256.0), torch.full((1, 4), 0.5)  # 256.5 is no bfloat16
    zero, cum_ftc, norms = torch.zeros(1, 4).bfloat16(), torch.zeros(1, 4), torch.zeros(1, 1, 4)
    accumulate_contribution(
        large.bfloat16(), zero, large.bfloat16(), small.bfloat16(), torch.zeros(1, 4), cum_ftc, norms, 0
    )
    assert norms.tolist() == [[[1024.0, 2.0, 1024.0, 2.0]]]
    assert cum_ftc.tolist() == [[0.5] * 4]


def test_rows_are_independent_and_columns_in_order() -> None:
    parts = [torch.randn(5, 8, dtype=torch.float64) for _ in range(4)]

    def norms_of(rows: slice) -> Tensor:
        mine = [part[rows] for part in parts]
        sums = [torch.zeros_like(mine[0]) for _ in range(2)]
        norms = torch.zeros(len(mine[0]), 1, 4, dtype=torch.float64)
        accumulate_contribution(*mine, *sums, norms, 0)
        return norms

    assert torch.equal(norms_of(slice(5)), torch.cat([norms_of(slice(i, i + 1)) for i in range(5)]))
    assert NORM_COLUMNS == LAYERS  # records name the columns that decomposition orders
