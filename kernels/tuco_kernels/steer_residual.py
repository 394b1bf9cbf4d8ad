"""FTC_alpha scaling on the steered rows, as a correction of FT's MLP output before it joins the stream.

The steered stream is (paper, Def. 5.1) x' = x + PTC + alpha FTC = x + (1 - alpha) f_PT + alpha f_FT. When
FT's MLP is done, x + A_FT is already in the stream, and delta = M_FT is still to be added by the next layer's
fused add and norm. So it is enough to change delta, on the rows with alpha != 1::

    FTC   = (A_FT + M_FT) - (A_PT + M_PT)             in float32
    delta = M_FT - (1 - alpha) FTC                    rounded once, to delta's dtype

and the next add, which stays vLLM's own, yields x'. A row with alpha = 1 is never written: it is FT's bit for
bit by construction, whatever PT's values are.

Source: Nuti, Franzmeyer, Henriques, ICML 2025, arXiv 2506.23423, §5.1.

Floor in bytes: 5 S H B, S steered rows of B bytes a number (4 reads, 1 write). Rewriting x' instead would
touch all T tokens.

Error of a steered element: half a unit in the last place of delta's dtype, plus 2^-24 times
|M| + 4 |1 - alpha| (|A_FT| + |M| + |A_PT| + |M_PT|) for the float32 steps.

Shape suffixes: T tokens, R rows, H hidden size.
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
)

MOST_COLUMNS = 4096

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _steer_residual_kernel(
        delta,  # in and out [T, H]
        alpha,  # [R] float32
        rows,  # [R]
        pt_attention,  # [R, H]
        pt_mlp,
        ft_attention,
        delta_stride,
        pt_attention_stride,
        pt_mlp_stride,
        ft_attention_stride,
        hidden_size,
        BLOCK_H: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        token = tl.load(rows + row).to(tl.int64)
        alpha = tl.load(alpha + row)
        if (token < 0) | (alpha == 1.0):
            return
        delta += token * delta_stride
        pt_attention += row * pt_attention_stride
        pt_mlp += row * pt_mlp_stride
        ft_attention += row * ft_attention_stride
        for start in range(0, hidden_size, BLOCK_H):
            column = start + tl.arange(0, BLOCK_H)
            inside = column < hidden_size
            ft_mlp = tl.load(delta + column, mask=inside).to(tl.float32)
            f_ft = tl.load(ft_attention + column, mask=inside).to(tl.float32) + ft_mlp
            f_pt = tl.load(pt_attention + column, mask=inside).to(tl.float32)
            f_pt += tl.load(pt_mlp + column, mask=inside).to(tl.float32)
            steered = ft_mlp - (1.0 - alpha) * (f_ft - f_pt)
            tl.store(delta + column, steered.to(delta.dtype.element_ty), mask=inside)


def steer_residual_triton(
    delta_TH: Tensor,
    alpha_R: Tensor,
    rows_R: Tensor,
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention_RH: Tensor,
) -> None:
    """``steer_residual`` by one launch, on CUDA tensors or in Triton's interpreter. Not float64."""
    require_triton()
    _check(delta_TH, alpha_R, rows_R, pt_attention_RH, pt_mlp_RH, ft_attention_RH, FLOATS)
    if rows_R.shape[0] == 0:
        return
    hidden_size = delta_TH.shape[1]
    matrices = pt_attention_RH, pt_mlp_RH, ft_attention_RH
    block, warps = launch_size(hidden_size, MOST_COLUMNS)
    _steer_residual_kernel[(rows_R.shape[0],)](
        delta_TH,
        alpha_R,
        rows_R,
        *matrices,
        *(matrix.stride(0) for matrix in (delta_TH, *matrices)),
        hidden_size,
        BLOCK_H=block,
        num_warps=warps,
    )


def steer_residual_torch(
    delta_TH: Tensor,
    alpha_R: Tensor,
    rows_R: Tensor,
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention_RH: Tensor,
) -> None:
    """The twin of ``steer_residual_triton``, in float32 or, with float64 inputs, in that."""
    dtypes = (*FLOATS, torch.float64)
    _check(delta_TH, alpha_R, rows_R, pt_attention_RH, pt_mlp_RH, ft_attention_RH, dtypes)
    if rows_R.shape[0] == 0 or delta_TH.shape[0] == 0:
        return
    wide = torch.promote_types(delta_TH.dtype, torch.float32)
    real_R = rows_R >= 0
    token_R = rows_R.clamp(min=0)
    ft_mlp_RH = delta_TH.index_select(0, token_R)
    m_RH = ft_mlp_RH.to(wide)
    ftc_RH = (ft_attention_RH.to(wide) + m_RH) - (pt_attention_RH.to(wide) + pt_mlp_RH.to(wide))
    steered_RH = m_RH - (1.0 - alpha_R.to(wide))[:, None] * ftc_RH
    is_steered_R1 = (real_R & (alpha_R != 1.0))[:, None]
    new_RH = torch.where(is_steered_R1, steered_RH.to(delta_TH.dtype), ft_mlp_RH)
    # Padding has no row of its own to write, and token 0 may be another's: it repeats the first real row.
    # Without any, all write token 0 as it was.
    itself_R = torch.arange(rows_R.shape[0], device=rows_R.device)
    writer_R = torch.where(real_R, itself_R, real_R.int().argmax())
    delta_TH.index_copy_(0, token_R[writer_R].long(), new_RH[writer_R])


def _check(
    delta_TH: Tensor,
    alpha_R: Tensor,
    rows_R: Tensor,
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention_RH: Tensor,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    if torch.compiler.is_compiling():  # no guards on shapes; on CUDA the launcher checks when it runs
        return
    expect_matrix("delta_TH", delta_TH)
    dtype, device = delta_TH.dtype, delta_TH.device
    count, shape = rows_R.numel(), (rows_R.numel(), delta_TH.shape[1])
    expect("delta_TH", delta_TH, tuple(delta_TH.shape), dtypes, device)
    expect("rows_R", rows_R, (count,), INDICES, device)
    expect("alpha_R", alpha_R, (count,), (torch.float32,), device)
    expect("pt_attention_RH", pt_attention_RH, shape, (dtype,), device)
    expect("pt_mlp_RH", pt_mlp_RH, shape, (dtype,), device)
    expect("ft_attention_RH", ft_attention_RH, shape, (dtype,), device)


def _fake(delta, alpha, rows, pt_attention, pt_mlp, ft_attention):
    return None


register("steer_residual", steer_residual_torch, steer_residual_triton, _fake, mutates=("delta_TH",))


def steer_residual(
    delta_TH: Tensor,
    alpha_R: Tensor,
    rows_R: Tensor,
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention_RH: Tensor,
) -> None:
    """Steer FT's MLP output ``delta_TH`` in place; the formula is the module's.

    Row r of the others, ``[R, H]``, belongs to token ``rows_R[r]`` (int32 or int64; distinct), which is left
    untouched if ``alpha_R[r]`` (float32) is 1. An entry of rows below 0 is padding. All matrices have one
    dtype of float32, float16, bfloat16 (on a CPU also float64) and any row stride. ValueError or TypeError
    names the argument that does not fit.
    """
    steer = torch.ops.tuco.steer_residual if delta_TH.is_cuda else steer_residual_torch
    steer(delta_TH, alpha_R, rows_R, pt_attention_RH, pt_mlp_RH, ft_attention_RH)
