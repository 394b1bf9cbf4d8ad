"""The maths on cases worked by hand: the paper's Example B.1 (its table) and Appendix A's four layers."""

import pytest
import torch
from torch import Tensor
from tuco_kernels import accumulate_contribution

from tuco_vllm import metrics
from tuco_vllm.decomposition import NORM_COLUMNS, norms
from tuco_vllm.records import LAYERS, TucoScore

H = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)  # any h; |h|_1 = 6
NOTHING = torch.zeros_like(H)


def run(ptc: list[Tensor], ftc: list[Tensor]) -> TucoScore:
    """Algorithm 1 over layers given by their contributions, attention carrying PTC and the MLP FTC."""
    cum_ptc, cum_ftc = NOTHING.clone(), NOTHING.clone()
    made = torch.zeros(1, len(ptc), 7, dtype=torch.float64)
    for layer, (p, f) in enumerate(zip(ptc, ftc, strict=True)):
        accumulate_contribution(p, NOTHING, p, f, cum_ptc, cum_ftc, made, layer)
        assert torch.equal(made[:, layer].nan_to_num(), norms(p, f, cum_ptc, cum_ftc).nan_to_num())
    return TucoScore.from_norms(made[0].tolist(), num_prompt_tokens=1)


def test_example_b1() -> None:
    """x_0 = 0, f_PT(., 0) = h, f_PT(x, 1) = x, f_FT(., 0) = 2h, f_FT(., 1) = 0."""
    x1 = 2 * H  # after FT's layer 0
    score = run(ptc=[H, x1], ftc=[2 * H - H, NOTHING - x1])
    assert (score.ptc_norm, score.ftc_norm) == (3 * 6.0, 1 * 6.0)  # P = 3h, F = -h
    assert score.tuco == pytest.approx(1 / 4)
    assert score.preco == pytest.approx(3 / 4)
    x2_ft, x2_pt = x1 + NOTHING, H + H  # PT's own stream: h, then h + h
    assert metrics.output_co(x2_pt.norm(1).item(), (x2_ft - x2_pt).norm(1).item()) == 0.0


def test_appendix_a_beta_is_not_tuco() -> None:
    """PTC 0, 0, h, -h/2 and FTC h, -h/2, 0, 0: TuCo is 1/2 while beta is 1."""
    score = run(ptc=[NOTHING, NOTHING, H, -H / 2], ftc=[H, -H / 2, NOTHING, NOTHING])
    assert score.tuco == pytest.approx(1 / 2)
    assert score.beta_max == 1.0
    assert score.cum_ftc_norms == [6.0, 3.0, 3.0, 3.0]  # norms of sums, not sums of norms


def test_what_l1_norms_do_not_see() -> None:
    """Example B.1 again: fine-tuning's sum is a third of PT's, and reversed; its layers undo two thirds."""
    score = run(ptc=[H, 2 * H], ftc=[H, -2 * H])
    assert score.cosines == pytest.approx([1.0, -1.0])
    assert score.cosine == pytest.approx(-1.0)
    assert score.tuco_l2 == pytest.approx(1 / 4)  # all vectors are multiples of one
    assert score.path_tuco == pytest.approx(1 / 2)  # 6 + 12 of each
    assert score.cancellation == pytest.approx(1 - 6 / 18)


def test_orthogonal_contributions_and_layers_that_agree() -> None:
    other = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)  # H.other = 0; |H|_2^2 = 14, |other|_2^2 = 5
    score = run(ptc=[H, NOTHING], ftc=[other, other])
    assert score.cosines == [0.0, 0.0]
    assert score.tuco_l2 == pytest.approx(20**0.5 / (20**0.5 + 14**0.5))
    assert score.tuco == pytest.approx(6 / 12)
    assert score.cancellation == 0.0


def test_nothing_over_nothing_is_zero() -> None:
    score = run(ptc=[NOTHING], ftc=[NOTHING])
    assert (score.tuco, score.beta_max, score.preco) == (0.0, 0.0, 1.0)
    assert (score.tuco_l2, score.path_tuco) == (0.0, 0.0)
    assert score.cosine is score.cancellation is score.cosines[0] is None


def test_the_model_with_itself_has_no_contribution() -> None:
    assert run(ptc=[H, -3 * H], ftc=[NOTHING, NOTHING]).tuco == 0.0


def test_sums_are_wider_than_the_models_dtype() -> None:
    """A small update beside a large one survives bfloat16 inputs: f is summed in float32."""
    large, small = torch.full((1, 4), 256.0), torch.full((1, 4), 0.5)  # 256.5 is no bfloat16
    zero, cum_ftc, made = torch.zeros(1, 4).bfloat16(), torch.zeros(1, 4), torch.zeros(1, 1, 7)
    accumulate_contribution(
        large.bfloat16(), zero, large.bfloat16(), small.bfloat16(), torch.zeros(1, 4), cum_ftc, made, 0
    )
    assert made.tolist() == [[[1024.0, 2.0, 1024.0, 2.0, 512.0, 1.0, 1.0]]]
    assert cum_ftc.tolist() == [[0.5] * 4]


def test_rows_are_independent_and_columns_in_order() -> None:
    parts = [torch.randn(5, 8, dtype=torch.float64) for _ in range(4)]

    def norms_of(rows: slice) -> Tensor:
        mine = [part[rows] for part in parts]
        sums = [torch.zeros_like(mine[0]) for _ in range(2)]
        made = torch.zeros(len(mine[0]), 1, 7, dtype=torch.float64)
        accumulate_contribution(*mine, *sums, made, 0)
        return made

    assert torch.equal(norms_of(slice(5)), torch.cat([norms_of(slice(i, i + 1)) for i in range(5)]))
    assert [name for name in NORM_COLUMNS if name in LAYERS] == [*LAYERS]  # records name them, in this order
