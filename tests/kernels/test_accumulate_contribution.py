"""Algorithm 1's layer: Triton against twin and float64, the twin against the formula written out."""

import pytest
import tolerances
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from tuco_kernels import accumulate_contribution
from tuco_kernels.accumulate_contribution import (
    MOST_COLUMNS,
    accumulate_contribution_torch,
    accumulate_contribution_triton,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0, 64), (1, 1), (5, 63), (1, 64), (5, 100), (2, 2049), (2, MOST_COLUMNS + 5)]
LAYERS, LAYER = 3, 1


@pytest.fixture
def case(random):
    """(dtype, rows, hidden, device) -> the four inputs, then sums and norms; norms are NaN."""

    def make(dtype, count: int, hidden: int, device: str = "cpu") -> list[Tensor]:
        inputs = [random(count, hidden, dtype=dtype, device=device, strided=n % 2 == 1) for n in range(4)]
        sums = [random(count, hidden, device=device, strided=n == 0) for n in range(2)]
        return [*inputs, *sums, torch.full((count, LAYERS, 7), float("nan"), device=device)]

    return make


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def written_out(
    pt_attention, pt_mlp, ft_attention, ft_mlp, cum_ptc, cum_ftc
) -> tuple[Tensor, Tensor, Tensor]:
    """Paper, §4.3 and §4.4: the new sums and the norms ``[R, 7]``, in the sums' dtype."""
    ptc = pt_attention.to(cum_ptc.dtype) + pt_mlp.to(cum_ptc.dtype)
    ftc = ft_attention.to(cum_ptc.dtype) + ft_mlp.to(cum_ptc.dtype) - ptc
    vectors = ptc, ftc, cum_ptc + ptc, cum_ftc + ftc
    columns = [vector.abs().sum(-1) for vector in vectors]
    columns += [vector.square().sum(-1).sqrt() for vector in vectors[2:]]
    columns.append((vectors[2] * vectors[3]).sum(-1) / columns[4] / columns[5])
    return *vectors[2:], torch.stack(columns, -1)


def exact(pt_attention, pt_mlp, ft_attention, ft_mlp, cum_ptc, cum_ftc) -> Tensor:
    """The norms in float64, ``[R, 7]``."""
    inputs = (t.double() for t in (pt_attention, pt_mlp, ft_attention, ft_mlp, cum_ptc, cum_ftc))
    return written_out(*inputs)[2]


def assert_norms(norms: Tensor, wanted: Tensor) -> None:
    scale = (wanted[:, 0:6:2] + wanted[:, 1:6:2]).repeat_interleave(2, dim=1)
    scale = torch.cat([scale, torch.ones_like(scale[:, :1])], dim=1)  # of a cosine
    assert ((norms.double() - wanted).abs() <= tolerances.KERNEL_L1 * scale).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_layer(dtype, shape, device, case, launches):
    given = case(dtype, *shape, device)
    made, twin = copies(given), copies(given)
    accumulate_contribution_triton(*made, LAYER)
    accumulate_contribution_torch(*twin, LAYER)
    assert launches["accumulate_contribution"] == (shape[0] > 0)
    for tensor, before in zip(made[:4], given[:4], strict=True):
        assert torch.equal(tensor, before)
    assert torch.equal(made[4], twin[4])
    assert torch.equal(made[5], twin[5])
    assert_norms(made[6][:, LAYER], exact(*given[:6]))
    others = [layer for layer in range(LAYERS) if layer != LAYER]
    assert made[6][:, others].isnan().all(), "another layer's norms were written"


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("gathered", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_all_tokens(dtype, gathered, index, device, case, random, launches):
    """FT's tensors are [T, H] and gathered by rows of their own; a row below 0 in either is padding."""
    count, tokens, hidden = 5, 37, 100
    *inputs, norms = case(dtype, count, hidden, device)
    rows = [torch.tensor(r, dtype=index, device=device) for r in ([36, -1, 0, 7, 7], [0, 3, 3, 36, -9])]
    real = torch.ones(count, dtype=torch.bool, device=device)
    chosen = list(inputs)  # what each row must take
    for place, is_gathered, row in zip((2, 3), gathered, rows, strict=True):
        if is_gathered:
            inputs[place] = random(tokens, hidden, dtype=dtype, device=device, strided=True)
            chosen[place] = inputs[place][row.clamp(min=0).long()]
            real &= row >= 0
    for tensor in chosen[:2]:
        tensor[~real] = float("nan")  # what a padding row computed must not matter
    attention_rows, mlp_rows = (
        row if is_gathered else None for row, is_gathered in zip(rows, gathered, strict=True)
    )
    named = {"attention_rows_R": attention_rows, "mlp_rows_R": mlp_rows}
    made, twin = (copies([*inputs, norms]) for _ in range(2))
    accumulate_contribution_triton(*made, LAYER, **named)
    accumulate_contribution_torch(*twin, LAYER, **named)
    assert launches["accumulate_contribution"] == 1
    for result in (made, twin):
        assert_norms(result[6][real, LAYER], exact(*(tensor[real] for tensor in chosen)))
        for place in (4, 5):
            assert torch.equal(result[place][~real], inputs[place][~real]), "padding was written"
        assert result[6][~real].isnan().all(), "padding was written"
    assert torch.equal(made[4], twin[4])
    assert torch.equal(made[5], twin[5])


def test_a_norm_does_not_depend_on_the_batch(device, case):
    alone = case(torch.bfloat16, 5, 2049, device)
    batch = [torch.cat([tensor.flip(0), tensor]) for tensor in alone]
    accumulate_contribution_triton(*alone, LAYER)
    accumulate_contribution_triton(*batch, LAYER)
    assert torch.equal(batch[6][5:, LAYER], alone[6][:, LAYER])


def test_the_public_function_launches_on_cuda_only(device, case, launches):
    accumulate_contribution(*case(torch.float32, 5, 64, device), LAYER)
    assert launches["accumulate_contribution"] == (device == "cuda")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_the_twin_is_the_formula(dtype, case):
    given = case(dtype, 5, 100)
    if dtype == torch.float64:
        given = [tensor.double() for tensor in given]
    wanted = written_out(*given[:6])
    accumulate_contribution(*given, LAYER)
    for made, value in zip((given[4], given[5], given[6][:, LAYER]), wanted, strict=True):
        assert made.dtype == value.dtype
        assert torch.equal(made, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_op_keeps_its_contract(dtype, op_device, case):
    op = torch.ops.tuco.accumulate_contribution
    given = case(dtype, 5, 64, op_device)
    given[6].zero_()  # opcheck compares before and after, and NaN is never equal
    torch.library.opcheck(op, (*given, LAYER))
    rows = torch.tensor([4, -1, 0, 2, 2], device=op_device)
    torch.library.opcheck(op, (*given, LAYER), {"attention_rows_R": rows, "mlp_rows_R": rows})


def test_compiled_once_for_all_sizes(op_device, case, random):
    def layers(inputs, rows):
        for layer in range(LAYERS):  # constants of the graph, as in a model
            accumulate_contribution(*inputs, layer, attention_rows_R=rows, mlp_rows_R=rows)

    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    compiled = torch.compile(layers, backend=counter, dynamic=True, fullgraph=True)
    for count, tokens in ((5, 11), (7, 23), (4, 6)):
        given = case(torch.bfloat16, count, 64, op_device)
        given[2], given[3] = (
            random(tokens, 64, dtype=torch.bfloat16, device=op_device, strided=strided)
            for strided in (True, False)
        )
        rows = torch.arange(count, device=op_device) - (1 if count == 7 else 0)  # one of padding
        eager, made = copies(given), copies(given)
        layers(eager, rows)
        compiled(made, rows)
        torch.testing.assert_close(
            made[4:], eager[4:], rtol=tolerances.KERNEL_L1, atol=tolerances.KERNEL_L1, equal_nan=True
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (1, torch.zeros(4, 64), ValueError, r"pt_mlp_RH: expected shape \(5, 64\), got \(4, 64\)"),
        (2, torch.zeros(5, 64).half(), TypeError, "ft_attention: expected torch.float32"),
        (3, torch.zeros(7, 64), ValueError, r"ft_mlp: expected shape \(5, 64\)"),
        (4, torch.zeros(5, 64).bfloat16(), TypeError, "cum_ptc_RH: expected torch.float32"),
        (5, torch.zeros(64, 5).T, ValueError, "cum_ftc_RH: expected a last dimension of stride 1"),
        (6, torch.zeros(5, LAYERS, 4), ValueError, "norms_RL7: expected shape"),
        (7, LAYERS, ValueError, "layer: expected 0 to 2, got 3"),
        (7, -1, ValueError, "layer: expected 0 to 2, got -1"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(place, value, error, message, case):
    arguments = [*case(torch.float32, 5, 64), LAYER]
    arguments[place] = value
    with pytest.raises(error, match=message):
        accumulate_contribution(*arguments)


def test_rows_that_do_not_fit_are_named(case):
    given = case(torch.float32, 5, 64)
    with pytest.raises(ValueError, match=r"mlp_rows_R: expected shape \(5,\), got \(4,\)"):
        accumulate_contribution(*given, LAYER, mlp_rows_R=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TypeError, match="attention_rows_R: expected torch"):
        accumulate_contribution(*given, LAYER, attention_rows_R=torch.zeros(5))
