"""RMS norms of the residual sum: Triton against twin and float64, twin against vLLM bit for bit."""

from types import SimpleNamespace

import pytest
import tolerances
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from tuco_kernels import add_rms_norm, dual_rms_norm, rows_rms_norm
from tuco_kernels.dual_rms_norm import MOST_COLUMNS, dual_rms_norm_torch, dual_rms_norm_triton

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = [1e-5, 0.3]  # far apart, to tell whose is used
SHAPES = [(0, 64), (1, 1), (5, 63), (1, 64), (5, 100), (3, 2049), (2, MOST_COLUMNS + 5)]


def exact(h: Tensor | None, x: Tensor, weight: Tensor, eps: float, plus_one: bool, round_sum: bool) -> Tensor:
    """The formula in float64; the sum rounded, where asked, as x is."""
    s = x.double() if h is None else h.double() + x.double()
    if round_sum:
        s = s.to(x.dtype).double()
    return s * (s.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * (weight.double() + plus_one)


def close(made: Tensor, wanted: Tensor) -> None:
    relative = tolerances.KERNEL_NORM[str(made.dtype).removeprefix("torch.")]
    torch.testing.assert_close(
        made.double(), wanted, rtol=relative, atol=tolerances.FLOAT16_SUBNORMAL, check_dtype=False
    )


@pytest.mark.parametrize("round_sum", [False, True], ids=["exact_sum", "round_sum"])
@pytest.mark.parametrize("plus_one", [False, True], ids=["g", "one_plus_g"])
@pytest.mark.parametrize("has_h", [True, False], ids=["h", "no_h"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_norms(dtype, shape, has_h, plus_one, round_sum, device, random, launches, poisoned):
    x = random(*shape, dtype=dtype, device=device, strided=True)
    h = random(*shape, dtype=dtype, device=device) if has_h else None
    weights = [random(shape[1], dtype=dtype, device=device) for _ in EPS]
    before = [x.clone(), h.clone() if has_h else None]
    *norms, new_x = dual_rms_norm_triton(h, x, None, weights, EPS, True, plus_one, round_sum)
    assert launches["dual_rms_norm"] == (shape[0] > 0)
    for norm, weight, eps in zip(norms, weights, EPS, strict=True):
        assert norm.dtype == dtype
        close(norm, exact(h, x, weight, eps, plus_one, round_sum))
    twin_x = dual_rms_norm_torch(h, x, None, weights, EPS, True, plus_one, round_sum)[2]
    assert torch.equal(new_x, twin_x)
    assert torch.equal(x, before[0])
    assert h is None or torch.equal(h, before[1])


@pytest.mark.parametrize("hidden", [100, MOST_COLUMNS + 5])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathered_rows(dtype, index, hidden, device, random, launches, poisoned):
    x = random(37, hidden, dtype=dtype, device=device, strided=True)
    h = random(5, hidden, dtype=dtype, device=device, strided=True)
    weight = random(hidden, dtype=dtype, device=device)
    rows = torch.tensor([36, -1, 0, 7, -5], dtype=index, device=device)
    (norm,) = dual_rms_norm_triton(h, x, rows, [weight], EPS[:1], False, False, False)
    real = rows >= 0
    close(norm[real], exact(h[real], x[rows[real].long()], weight, EPS[0], False, False))
    assert norm[~real].isnan().all(), "padding was written"
    assert launches["dual_rms_norm"] == 1
    assert dual_rms_norm_triton(h[:0], x, rows[:0], [weight], EPS[:1], False, False, False)[0].shape == (
        0,
        hidden,
    )
    assert launches["dual_rms_norm"] == 1, "no rows, no launch"


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("round_sum", [False, True], ids=["exact_sum", "round_sum"])
def test_rounding_is_where_the_twin_has_it(round_sum, weight_dtype, device, random):
    """A norm that rounds elsewhere is within the error bound too; nearly all bits equal tells them apart."""
    h, x = (random(5, 2049, dtype=torch.bfloat16, device=device) for _ in range(2))
    weights = [random(2049, dtype=weight_dtype, device=device) for _ in EPS]
    made = dual_rms_norm_triton(h, x, None, weights, EPS, False, False, round_sum)
    twin = dual_rms_norm_torch(h, x, None, weights, EPS, False, False, round_sum)
    other = dual_rms_norm_torch(h, x, None, weights, EPS, False, False, not round_sum)
    for norm, wanted, elsewhere in zip(made, twin, other, strict=True):
        assert (norm != wanted).float().mean() <= tolerances.ROUNDING_FLIPS
        assert (norm != elsewhere).float().mean() > 100 * tolerances.ROUNDING_FLIPS


def test_public_functions_launch_on_cuda_only(device, random, launches):
    h, x, g = random(5, 64, device=device), random(5, 64, device=device), random(64, device=device)
    rows = torch.arange(5, device=device)
    dual_rms_norm(h, x, g, g, *EPS)
    add_rms_norm(h, x, g, EPS[0])
    rows_rms_norm(h, x, rows, g, EPS[0])
    assert launches["dual_rms_norm"] == (3 if device == "cuda" else 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_offsets_past_32_bits(random):
    hidden, tokens = 4096, 2**31 // 4096 + 8
    x = torch.zeros(tokens, hidden, dtype=torch.bfloat16, device="cuda")
    x[-1] = random(hidden, dtype=torch.bfloat16, device="cuda")
    h, weight = torch.zeros_like(x[:1]), torch.ones_like(x[0])
    rows = torch.tensor([tokens - 1], device="cuda")
    close(rows_rms_norm(h, x, rows, weight, EPS[0]), exact(None, x[-1:], weight, EPS[0], False, False))


@pytest.mark.parametrize("hidden", [1, 63, 2049])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["same", "float32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_twin_is_vllms_native_op_bit_for_bit(dtype, weight_dtype, hidden, random):
    from vllm import ir
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    h, x = random(5, hidden, dtype=dtype), random(5, hidden, dtype=dtype)
    ft, pt = (random(hidden, dtype=weight_dtype or dtype) for _ in EPS)
    fused, single = ir.ops.fused_add_rms_norm.impls["native"].impl_fn, ir.ops.rms_norm.impls["native"].impl_fn
    y_ft, y_pt, new_x = dual_rms_norm(h, x, ft, pt, *EPS)
    for norm, weight, eps in ((y_ft, ft, EPS[0]), (y_pt, pt, EPS[1])):
        wanted, wanted_x = fused(h, x, weight, eps)
        assert torch.equal(norm, wanted)
        assert torch.equal(new_x, wanted_x)
        assert torch.equal(add_rms_norm(h, x, weight, eps), wanted)
        assert torch.equal(add_rms_norm(None, x, weight, eps), single(x, weight, eps))
        # The sum rounded first is what the plain norm makes of the stream already added.
        assert torch.equal(add_rms_norm(h, x, weight, eps, round_sum=True), single(wanted_x, weight, eps))
        gemma = SimpleNamespace(weight=weight, variance_epsilon=eps)
        assert torch.equal(
            add_rms_norm(h, x, weight, eps, plus_one=True), GemmaRMSNorm.forward_native(gemma, x, h)[0]
        )
        rows = torch.tensor([4, 0])
        assert torch.equal(rows_rms_norm(h[:2], x, rows, weight, eps), fused(h[:2], x[rows], weight, eps)[0])


def test_without_h_the_new_stream_is_the_stream(random):
    x, g = random(5, 64), random(64)
    y_ft, y_pt, new_x = dual_rms_norm(None, x, g, g, *EPS)
    assert new_x is x
    assert torch.equal(y_ft, add_rms_norm(None, x, g, EPS[0]))
    assert torch.equal(y_pt, add_rms_norm(None, x, g, EPS[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_op_keeps_its_contract(dtype, op_device, random):
    h, x, g = (random(*shape, dtype=dtype, device=op_device) for shape in ((5, 64), (9, 64), (64,)))
    rows = torch.tensor([8, -1, 0, 3, 3], dtype=torch.int32, device=op_device)
    real = rows >= 0
    op = torch.ops.tuco.dual_rms_norm
    torch.library.opcheck(op, (x[:5], h, None, [g, g], EPS, True, False, True))
    torch.library.opcheck(op, (None, x, None, [g], EPS[:1], False, True, False))
    torch.library.opcheck(op, (h[real], x, rows[real], [g], EPS[:1], False, False, False))


def test_compiled_once_for_all_sizes(op_device, random):
    def norms(h, x, rows, g):
        return *dual_rms_norm(h, x[: h.shape[0]], g, g, *EPS), rows_rms_norm(h, x, rows, g, EPS[0])

    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    compiled = torch.compile(norms, backend=counter, dynamic=True, fullgraph=True)
    for rows, tokens in ((5, 11), (7, 23), (3, 4)):
        h, x, g = (random(*shape, device=op_device) for shape in ((rows, 64), (tokens, 64), (64,)))
        index = torch.arange(rows, device=op_device, dtype=torch.int32)
        for made, wanted in zip(compiled(h, x, index, g), norms(h, x, index, g), strict=True):
            close(made, wanted.double())
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"h_RH": torch.zeros(4, 64)}, ValueError, r"h: expected shape \(5, 64\), got \(4, 64\)"),
        ({"h_RH": torch.zeros(5, 64).half()}, TypeError, "h: expected torch.float32, got torch.float16"),
        ({"h_RH": torch.zeros(64, 5).T}, ValueError, "h: expected a last dimension of stride 1"),
        ({"weight_H": torch.zeros(63)}, ValueError, r"weight_H: expected shape \(64,\)"),
        ({"x_TH": torch.zeros(9)}, ValueError, "x_TH: expected 2 dimensions, got 1"),
        ({"x_TH": torch.zeros(9, 64).double()}, TypeError, "x_TH: expected torch.float32 or"),
        ({"rows_R": torch.zeros(5)}, TypeError, "rows_R: expected torch.int32 or torch.int64"),
        ({"weight_H": torch.zeros(64, device="meta")}, ValueError, "weight_H: expected a tensor on cpu"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(changed, error, message):
    fitting = {
        "h_RH": torch.zeros(5, 64),
        "x_TH": torch.zeros(9, 64),
        "rows_R": torch.zeros(5, dtype=torch.int64),
        "weight_H": torch.zeros(64),
    }
    rows_rms_norm(**fitting, eps=1e-5)
    with pytest.raises(error, match=message):
        rows_rms_norm(**(fitting | changed), eps=1e-5)
