"""Residual add and RMS norm, for two models at once or for one, over all tokens or gathered rows.

FT and PT normalise the same stream, each with its own gain, so one read and one reduction serve both::

    s    = h + x                                              in float32
    x'   = s                                                  in x's dtype
    y_m  = ((s * rsqrt(mean(s^2) + eps_m)) * g_m)             m = FT, PT; rounded to g's dtype, then to x's
    with round_sum, s is rounded to x's dtype before it is normalised; with plus_one (Gemma), g is 1 + g in
    float32

Sources: RMS norm, Zhang & Sennrich 2019, arXiv 1910.07467; places of rounding, vLLM's
``vllm/ir/ops/layernorm.py`` (the twin is it bit for bit) and ``csrc/layernorm_kernels.cu`` (``round_sum``).

Floor in bytes, B a number: ``dual_rms_norm`` 5 T H B (2 reads, 3 writes; unfused 9), ``add_rms_norm``
3 T H B, ``rows_rms_norm`` 3 R H B. A row stays in registers up to MOST_COLUMNS; a longer one is read twice,
the second time from cache.

Error against exact arithmetic: rounding to g's dtype and to x's, each half a unit in the last place, and
about log2(H) + 4 float32 roundings (summing the squares in a tree, rsqrt, one product): a float32 unit or two
in rstd, which in bfloat16 moves about 1 output in 3e4 to its neighbour.

Shape suffixes: T tokens, R rows, N either of them, H hidden size.
"""

import torch
from torch import Tensor

from tuco_kernels.dispatch import (
    FLOATS,
    HAS_TRITON,
    INDICES,
    expect,
    expect_matrix,
    launch_size,
    register,
    require_triton,
    twin_in_compiled_code,
)

MOST_COLUMNS = 8192
"""A row up to this is held in registers: 16 numbers a thread of 16 warps."""

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _load_sum(h, x, columns, inside, ROUND_SUM: tl.constexpr):
        s = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        if h is not None:
            s += tl.load(h + columns, mask=inside, other=0.0).to(tl.float32)
        if ROUND_SUM:
            s = s.to(x.dtype.element_ty).to(tl.float32)
        return s

    @triton.jit
    def _store_norm(y, s, rstd, g, columns, inside, PLUS_ONE: tl.constexpr):
        g = tl.load(g + columns, mask=inside, other=0.0)
        if PLUS_ONE:
            g = g.to(tl.float32) + 1.0
        # A 16-bit product is the float32 product rounded (which is exact before): said so, not left to a
        # target's own 16-bit arithmetic.
        product = (s * rstd).to(g.dtype).to(tl.float32) * g.to(tl.float32)
        tl.store(y + columns, product.to(g.dtype).to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _store_row(s, mean, new_x, y_a, g_a, eps_a, y_b, g_b, eps_b, columns, inside, PLUS_ONE: tl.constexpr):
        if new_x is not None:
            tl.store(new_x + columns, s.to(new_x.dtype.element_ty), mask=inside)
        _store_norm(y_a, s, tl.rsqrt(mean + eps_a), g_a, columns, inside, PLUS_ONE)
        if y_b is not None:
            _store_norm(y_b, s, tl.rsqrt(mean + eps_b), g_b, columns, inside, PLUS_ONE)

    @triton.jit
    def _dual_rms_norm_kernel(
        h,  # [N, H] or None
        x,  # [N, H], or [T, H] if there are rows
        rows,  # [N] or None
        new_x,  # out [N, H] or None, contiguous as y
        y_a,  # out [N, H], and g, eps: one model's
        g_a,
        eps_a,
        y_b,  # the other's, or None
        g_b,
        eps_b,
        h_stride,
        x_stride,
        hidden_size,
        ROUND_SUM: tl.constexpr,
        PLUS_ONE: tl.constexpr,
        BLOCK_H: tl.constexpr,
        ONE_BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        source = tl.load(rows + row).to(tl.int64) if rows is not None else row
        if source < 0:
            return
        x += source * x_stride
        y_a += row * hidden_size
        if h is not None:
            h += row * h_stride
        if new_x is not None:
            new_x += row * hidden_size
        if y_b is not None:
            y_b += row * hidden_size

        columns = tl.arange(0, BLOCK_H)
        if ONE_BLOCK:
            inside = columns < hidden_size
            s = _load_sum(h, x, columns, inside, ROUND_SUM)
            mean = tl.sum(s * s, axis=0) / hidden_size
            _store_row(s, mean, new_x, y_a, g_a, eps_a, y_b, g_b, eps_b, columns, inside, PLUS_ONE)
        else:
            squares = tl.zeros([BLOCK_H], tl.float32)
            for start in range(0, hidden_size, BLOCK_H):
                s = _load_sum(h, x, start + columns, start + columns < hidden_size, ROUND_SUM)
                squares += s * s
            mean = tl.sum(squares, axis=0) / hidden_size
            for start in range(0, hidden_size, BLOCK_H):
                there = start + columns
                inside = there < hidden_size
                s = _load_sum(h, x, there, inside, ROUND_SUM)
                _store_row(s, mean, new_x, y_a, g_a, eps_a, y_b, g_b, eps_b, there, inside, PLUS_ONE)


def dual_rms_norm_triton(
    h_NH: Tensor | None,
    x_TH: Tensor,
    rows_N: Tensor | None,
    weights: list[Tensor],
    eps: list[float],
    write_sum: bool,
    plus_one: bool,
    round_sum: bool,
) -> list[Tensor]:
    """All three public functions, by one launch, on CUDA tensors or in Triton's interpreter.

    One or two weights ``[H]`` with their eps; returns ``[N, H]`` for each of them, then x' if ``write_sum``.
    N is T, or the number of rows. Rows below 0 are padding: nothing is read or written for them.
    """
    require_triton()
    _check(h_NH, x_TH, rows_N, weights)
    shape = (x_TH if rows_N is None else rows_N).shape[0], x_TH.shape[1]
    y = [torch.empty(shape, dtype=x_TH.dtype, device=x_TH.device) for _ in weights]
    new_x = [torch.empty(shape, dtype=x_TH.dtype, device=x_TH.device)] if write_sum else []
    if shape[0] == 0:
        return y + new_x
    dual = len(weights) == 2
    block, warps = launch_size(shape[1], MOST_COLUMNS)
    _dual_rms_norm_kernel[shape[:1]](
        h_NH,
        x_TH,
        rows_N,
        new_x[0] if write_sum else None,
        y[0],
        weights[0],
        eps[0],
        y[1] if dual else None,
        weights[1] if dual else None,
        eps[1] if dual else 0.0,
        0 if h_NH is None else h_NH.stride(0),
        x_TH.stride(0),
        shape[1],
        ROUND_SUM=round_sum,
        PLUS_ONE=plus_one,
        BLOCK_H=block,
        ONE_BLOCK=shape[1] <= block,
        num_warps=warps,
    )
    return y + new_x


def dual_rms_norm_torch(
    h_NH: Tensor | None,
    x_TH: Tensor,
    rows_N: Tensor | None,
    weights: list[Tensor],
    eps: list[float],
    write_sum: bool,
    plus_one: bool,
    round_sum: bool,
) -> list[Tensor]:
    """The twin of ``dual_rms_norm_triton``; in padding rows it computes something."""
    _check(h_NH, x_TH, rows_N, weights)
    x_NH = x_TH if rows_N is None else x_TH.index_select(0, rows_N.clamp(min=0))
    s_NH = x_NH.float() if h_NH is None else h_NH.float() + x_NH.float()
    new_x_NH = s_NH.to(x_TH.dtype)
    if round_sum:
        s_NH = new_x_NH.float()
    variance_N1 = s_NH.pow(2).mean(dim=-1, keepdim=True)
    made = []
    for g, epsilon in zip(weights, eps, strict=True):
        g_H = g.float() + 1.0 if plus_one else g
        made.append(((s_NH * torch.rsqrt(variance_N1 + epsilon)).to(g_H.dtype) * g_H).to(x_TH.dtype))
    return [*made, new_x_NH] if write_sum else made


def _fake(
    h: Tensor | None,
    x: Tensor,
    rows: Tensor | None,
    weights: list[Tensor],
    eps: list[float],
    write_sum: bool,
    plus_one: bool,
    round_sum: bool,
) -> list[Tensor]:
    shape = (x if rows is None else rows).shape[0], x.shape[1]
    return [x.new_empty(shape) for _ in range(len(weights) + write_sum)]


def _check(h: Tensor | None, x: Tensor, rows: Tensor | None, weights: list[Tensor]) -> None:
    if torch.compiler.is_compiling():  # no guards on shapes; on CUDA the launcher checks when it runs
        return
    expect_matrix("x_TH", x)
    expect("x_TH", x, tuple(x.shape), FLOATS, x.device)
    if rows is not None:
        expect("rows_R", rows, (rows.numel(),), INDICES, x.device)
    if h is not None:
        expect("h", h, ((x if rows is None else rows).shape[0], x.shape[1]), (x.dtype,), x.device)
    for weight in weights:
        expect("weight_H", weight, (x.shape[1],), FLOATS, x.device)


register("dual_rms_norm", dual_rms_norm_torch, dual_rms_norm_triton, _fake)


def dual_rms_norm(
    h_TH: Tensor | None,
    x_TH: Tensor,
    ft_weight_H: Tensor,
    pt_weight_H: Tensor,
    ft_eps: float,
    pt_eps: float,
    *,
    plus_one: bool = False,
    round_sum: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y_FT, y_PT, x'): the residual add, and both models' norms of its sum. ``[T, H]`` each, in x's dtype.

    The formula is the module's; without h the sum is x, and x' is x itself. h and x have the same dtype of
    float32, float16, bfloat16, any row stride, and are never written. The weights ``[H]`` may be of another
    of these dtypes. ValueError or TypeError names the argument that does not fit.
    """
    norm = dual_rms_norm_torch if twin_in_compiled_code(x_TH) else torch.ops.tuco.dual_rms_norm
    weights, eps = [ft_weight_H, pt_weight_H], [ft_eps, pt_eps]
    # An op may not return its input, so without h it is not asked for x'.
    y_ft_TH, y_pt_TH, *new_x = norm(h_TH, x_TH, None, weights, eps, h_TH is not None, plus_one, round_sum)
    return y_ft_TH, y_pt_TH, new_x[0] if new_x else x_TH


def add_rms_norm(
    h_TH: Tensor | None,
    x_TH: Tensor,
    weight_H: Tensor,
    eps: float,
    *,
    plus_one: bool = False,
    round_sum: bool = False,
) -> Tensor:
    """One model's norm of h + x ``[T, H]``; the sum is not written. Arguments as ``dual_rms_norm``'s."""
    norm = dual_rms_norm_torch if twin_in_compiled_code(x_TH) else torch.ops.tuco.dual_rms_norm
    return norm(h_TH, x_TH, None, [weight_H], [eps], False, plus_one, round_sum)[0]


def rows_rms_norm(
    h_RH: Tensor,
    x_TH: Tensor,
    rows_R: Tensor,
    weight_H: Tensor,
    eps: float,
    *,
    plus_one: bool = False,
    round_sum: bool = False,
) -> Tensor:
    """One model's norm of h[r] + x[rows[r]] ``[R, H]``, the gather included; rows are int32 or int64.

    An entry of rows below 0 is padding: what the output holds there is undefined. Else as ``dual_rms_norm``.
    """
    norm = dual_rms_norm_torch if twin_in_compiled_code(x_TH) else torch.ops.tuco.dual_rms_norm
    return norm(h_RH, x_TH, rows_R, [weight_H], [eps], False, plus_one, round_sum)[0]
