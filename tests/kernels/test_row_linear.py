"""The float32 product with 16-bit weights: its error is float32's, on a CPU and, in three parts, on CUDA."""

import pytest
import tolerances
import torch
from tuco_kernels import row_linear
from tuco_kernels.row_linear import BLOCK, row_linear_torch, split

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def exact(x, weight, bias):
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()


def assert_float32(y, x, weight, bias) -> None:
    """Errors relative to the sum of what is added up in size, as a float32 product has them."""
    size = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
    assert y.dtype == torch.float32
    assert ((y.double() - exact(x, weight, bias)).abs() / size).max() <= tolerances.KERNEL_ROW_LINEAR


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (5, 64, 7), (3, 200, 301), (40, 33, 64)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_product(dtype, biased, rows, inputs, outputs, op_device, random):
    x = random(rows, inputs, device=op_device, strided=True)
    weight = random(outputs, inputs, dtype=dtype, device=op_device)
    bias = random(outputs, dtype=dtype, device=op_device) if biased else None
    before = [tensor.clone() for tensor in (x, weight)]
    assert_float32(row_linear(x, weight, bias), x, weight, bias)
    for tensor, copy in zip((x, weight), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("outputs", [1, 6, 7, 8])
def test_blocks_cover_all_outputs(outputs, random, monkeypatch):
    """Blocks of three outputs, the last of them cut short or not."""
    module = __import__("sys").modules["tuco_kernels.row_linear"]
    monkeypatch.setattr(module, "BLOCK", 3 * 16)
    x, weight = random(4, 16), random(outputs, 16, dtype=torch.bfloat16)
    assert_float32(row_linear_torch(x, weight, None), x, weight, None)
    monkeypatch.setattr(module, "BLOCK", 1)  # less than one output
    assert_float32(row_linear_torch(x, weight, None), x, weight, None)
    assert BLOCK > 3 * 16


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_three_parts_have_all_bits(dtype, random):
    """What CUDA multiplies: exact to 2^-24 in size, and no part of it is left out."""
    x = random(6, 50)
    parts = split(x, dtype)
    assert (parts.dtype, parts.shape) == (dtype, (18, 50))
    error = (parts.double().view(3, 6, 50).sum(0) - x.double()).abs()
    lost = 6e-8 if dtype == torch.float16 else 0.0  # float16's least number
    assert (error <= x.double().abs() * 2**-24 + lost).all()
    two = (parts.double().view(3, 6, 50)[:2].sum(0) - x.double()).abs()
    assert (two > x.double().abs() * 2**-24 + lost).any()


def test_no_rows(random):
    assert row_linear(random(0, 8), random(5, 8)).shape == (0, 5)


def test_compiles_as_one_op(random):
    weight, bias = random(9, 16, dtype=torch.bfloat16), random(9, dtype=torch.bfloat16)
    compiled = torch.compile(lambda x: row_linear(x * 2, weight, bias) + 1, fullgraph=True, dynamic=True)
    for rows in (2, 5):
        x = random(rows, 16)
        torch.testing.assert_close(compiled(x), row_linear(x * 2, weight, bias) + 1)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((torch.ones(2, 4).half(), torch.ones(3, 4)), TypeError, "x_RI"),
        ((torch.ones(2, 4), torch.ones(3, 5)), ValueError, "weight_OI"),
        ((torch.ones(2, 4), torch.ones(3, 4), torch.ones(4)), ValueError, "bias_O"),
        ((torch.ones(4), torch.ones(3, 4)), ValueError, "x_RI"),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, named):
    with pytest.raises(error, match=named):
        row_linear(*arguments)
