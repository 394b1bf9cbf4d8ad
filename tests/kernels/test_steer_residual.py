"""FTC_alpha scaling: Triton against twin and float64, and the rows that nobody may touch."""

import pytest
import tolerances
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from tuco_kernels import steer_residual
from tuco_kernels.steer_residual import MOST_COLUMNS, steer_residual_torch, steer_residual_triton

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOKENS = 37
NAN = float("nan")

# Padding comes first, in between and last; token 0 is steered, 5 is not (alpha is 1), 9 becomes PT's.
ROWS = [-1, 0, 36, -7, 5, 9, -1]
ALPHA = [0.5, 0.5, 2.5, 0.0, 1.0, 0.0, 1.0]
CHANGED = [0, 9, 36]


def exact(delta: Tensor, alpha: Tensor, rows: Tensor, pt_attention, pt_mlp, ft_attention) -> Tensor:
    """Def. 5.1 in float64: what delta must be so that x + A_FT + delta is the steered stream."""
    delta = delta.double()
    for r, token in enumerate(rows.tolist()):
        if token >= 0 and alpha[r] != 1:
            f_pt = pt_attention[r].double() + pt_mlp[r].double()
            f_ft = ft_attention[r].double() + delta[token]
            steered = (1 - alpha[r].double()) * f_pt + alpha[r].double() * f_ft
            delta[token] = steered - ft_attention[r].double()
    return delta


def close(made: Tensor, wanted: Tensor) -> None:
    relative = tolerances.KERNEL_STEER[str(made.dtype).removeprefix("torch.")]
    torch.testing.assert_close(
        made.double(), wanted, rtol=relative, atol=tolerances.KERNEL_STEER_ABSOLUTE, check_dtype=False
    )


@pytest.fixture
def case(random):
    """(dtype, hidden, device, index) -> the arguments for ROWS and ALPHA."""

    def make(dtype, hidden: int, device: str = "cpu", index=torch.int64) -> list[Tensor]:
        rows = torch.tensor(ROWS, dtype=index, device=device)
        alpha = torch.tensor(ALPHA, device=device)
        delta = random(TOKENS, hidden, dtype=dtype, device=device, strided=True)
        outputs = [random(len(ROWS), hidden, dtype=dtype, device=device, strided=n == 1) for n in range(3)]
        return [delta, alpha, rows, *outputs]

    return make


def bits(tensor: Tensor) -> Tensor:
    """Equal bits, where NaN equals itself and -0.0 is not 0.0."""
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("hidden", [1, 63, 64, 100, 2049, MOST_COLUMNS + 5])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steered_rows(dtype, index, hidden, device, case, launches):
    delta, *others = case(dtype, hidden, device, index)
    made, before = delta.clone(), [tensor.clone() for tensor in others]
    steer_residual_triton(made, *others)
    assert launches["steer_residual"] == 1
    wanted = exact(delta, *others)
    close(made, wanted)
    assert (made != delta).any(dim=1).nonzero().flatten().tolist() == CHANGED
    twin = delta.clone()
    steer_residual_torch(twin, *others)
    close(twin, wanted)
    assert (twin != made).float().mean() <= tolerances.ROUNDING_FLIPS or device == "cuda"
    for tensor, copy in zip(others, before, strict=True):
        assert torch.equal(tensor, copy)


def assert_untouched(steer, arguments: list[Tensor]) -> None:
    """Rows at alpha 1, padding and all other tokens keep their bits, whatever PT's and FT's values there."""
    delta, alpha, rows, *outputs = arguments
    for output in outputs:
        output[(alpha == 1) | (rows < 0)] = NAN
    delta[5, 0], delta[6, 0] = -0.0, NAN
    before = bits(delta).clone()
    steer(*arguments)
    assert (bits(delta) != before).any(dim=1).nonzero().flatten().tolist() == CHANGED
    assert not delta[CHANGED].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_leaks_into_other_rows(dtype, device, case):
    assert_untouched(steer_residual_triton, case(dtype, 100, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_leaks_into_other_rows_of_the_twin(dtype, case):
    assert_untouched(steer_residual_torch, case(dtype, 100))


def by_layer(arguments: list[Tensor], random) -> list[Tensor]:
    """Alpha as it comes by layer: a row of a matrix ``[L, R]``, 1 where a layer is outside a row's range."""
    alpha = random(5, len(ROWS), device=str(arguments[1].device))
    alpha[3] = arguments[1]
    return [arguments[0], alpha[3], *arguments[2:]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alpha_may_be_a_row_of_a_matrix(dtype, device, case, random):
    assert_untouched(steer_residual_triton, by_layer(case(dtype, 100, device), random))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alpha_may_be_a_row_of_a_matrix_to_the_twin(dtype, case, random):
    assert_untouched(steer_residual_torch, by_layer(case(dtype, 100), random))


def test_no_rows_or_only_padding(device, case, launches):
    delta, alpha, rows, *outputs = case(torch.bfloat16, 64, device)
    before = delta.clone()
    for steer in (steer_residual_triton, steer_residual_torch):
        steer(delta, alpha[:0], rows[:0], *(output[:0] for output in outputs))
        assert launches["steer_residual"] == 0
        steer(delta, alpha, rows.clamp(max=-1), *outputs)
        assert torch.equal(delta, before)
        launches.clear()


def test_the_public_function_launches_on_cuda_only(device, case, launches):
    steer_residual(*case(torch.float32, 64, device))
    assert launches["steer_residual"] == (device == "cuda")


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_alpha_means(alpha, random):
    """x + A_FT + delta is PT's layer at 0, half way at 1/2, FT's at 1. The twin's maths, in float64."""
    x, pt_attention, pt_mlp, ft_attention, ft_mlp = (random(3, 16).double() for _ in range(5))
    delta = ft_mlp.clone()
    steer_residual(delta, torch.full((3,), alpha), torch.arange(3), pt_attention, pt_mlp, ft_attention)
    wanted = x + (1 - alpha) * (pt_attention + pt_mlp) + alpha * (ft_attention + ft_mlp)
    torch.testing.assert_close(x + ft_attention + delta, wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_op_keeps_its_contract(dtype, op_device, case):
    torch.library.opcheck(torch.ops.tuco.steer_residual, tuple(case(dtype, 64, op_device)))


def test_compiled_once_for_all_sizes(op_device, case, random):
    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    compiled = torch.compile(steer_residual, backend=counter, dynamic=True, fullgraph=True)
    for count, tokens in ((7, 37), (6, 41), (3, 53)):
        # Clones: dynamo also compares a view's size with its base's, and the first would be all of its base.
        arguments = [tensor[:count].clone() for tensor in case(torch.bfloat16, 64, op_device)]
        arguments[0] = random(tokens, 64, dtype=torch.bfloat16, device=op_device)
        wanted = exact(*arguments)
        compiled(*arguments)
        close(arguments[0], wanted)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, torch.zeros(64), ValueError, "delta_TH: expected 2 dimensions, got 1"),
        (0, torch.zeros(37, 64).int(), TypeError, "delta_TH: expected torch.float32"),
        (1, torch.ones(6), ValueError, r"alpha_R: expected shape \(7,\), got \(6,\)"),
        (1, torch.ones(7).half(), TypeError, "alpha_R: expected torch.float32, got torch.float16"),
        (2, torch.zeros(7), TypeError, "rows_R: expected torch.int32 or torch.int64"),
        (3, torch.zeros(7, 63), ValueError, r"pt_attention_RH: expected shape \(7, 64\)"),
        (4, torch.zeros(7, 64).half(), TypeError, "pt_mlp_RH: expected torch.float32"),
        (5, torch.zeros(64, 7).T, ValueError, "ft_attention_RH: expected a last dimension of stride 1"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(place, value, error, message, case):
    arguments = case(torch.float32, 64)
    arguments[place] = value
    with pytest.raises(error, match=message):
        steer_residual(*arguments)
