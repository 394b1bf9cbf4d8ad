"""A linear layer in float32 on a few rows, by weights that are held in 16 bits.

    y_RO = x_RI W_OI^T + b_O          x, y in float32, W and b as the checkpoint has them

Where differences of two models are smaller than bfloat16's rounding, the rows that are read are computed in
float32. Few rows are bound by reading W, and W is read once, as it lies:

- On CUDA, x is the sum of three numbers of W's dtype (``split``), exactly but for 2^-24; one product of 3 R
  rows, of 16-bit operands and float32 sums, then has all 24 bits of x. Reading W is what it costs.
- Elsewhere, a block of W at a time is cast to float32, small enough to stay in cache.

Neither is a kernel of ours, so there is no Triton here. An op all the same: to torch.compile the loop, and
the block, are opaque. In float16, parts of x below 6e-8 are lost, and |x| above 65504 is infinite.

Shape suffixes: R rows, I and O the layer's input and output size.
"""

import torch
from torch import Tensor

from tuco_kernels.dispatch import FLOATS, expect, expect_matrix, register

BLOCK = 1 << 20
"""Numbers of a block of weights: 4 MiB in float32, of the size of a core's cache."""


def split(x_RI: Tensor, dtype: torch.dtype) -> Tensor:
    """``[3 R, I]`` in ``dtype``: the parts high, middle and low, whose sum is ``x_RI``."""
    high = x_RI.to(dtype)
    rest = x_RI - high.float()
    middle = rest.to(dtype)
    return torch.cat([high, middle, (rest - middle.float()).to(dtype)])


def row_linear_cuda(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """See the module's docstring."""
    _check(x_RI, weight_OI, bias_O)
    if weight_OI.dtype == torch.float32:
        return torch.nn.functional.linear(x_RI, weight_OI, bias_O)
    parts = torch.mm(split(x_RI, weight_OI.dtype), weight_OI.t(), out_dtype=torch.float32)
    y_RO = parts.view(3, x_RI.shape[0], -1).sum(0)
    return y_RO if bias_O is None else y_RO.add_(bias_O)


def row_linear_torch(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """See the module's docstring."""
    _check(x_RI, weight_OI, bias_O)
    y_RO = x_RI.new_empty(x_RI.shape[0], weight_OI.shape[0])
    step = max(BLOCK // weight_OI.shape[1], 1)
    for start in range(0, weight_OI.shape[0], step):
        block = weight_OI[start : start + step].float()
        torch.mm(x_RI, block.t(), out=y_RO[:, start : start + step])
    return y_RO if bias_O is None else y_RO.add_(bias_O)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _check(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> None:
    expect_matrix("x_RI", x_RI)
    expect_matrix("weight_OI", weight_OI)
    expect("x_RI", x_RI, tuple(x_RI.shape), (torch.float32,), x_RI.device)
    expect("weight_OI", weight_OI, (weight_OI.shape[0], x_RI.shape[1]), FLOATS, x_RI.device)
    if bias_O is not None:
        expect("bias_O", bias_O, (weight_OI.shape[0],), FLOATS, x_RI.device)


register("row_linear", row_linear_torch, row_linear_cuda, _fake)


def row_linear(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b`` as float32 ``[R, O]``, the error that of a float32 product.

    ``x_RI`` is float32, the others float32, float16 or bfloat16, on one device. ValueError or TypeError names
    the argument that does not fit.
    """
    return torch.ops.tuco.row_linear(x_RI, weight_OI, bias_O)
