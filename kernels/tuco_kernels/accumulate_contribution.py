"""One layer of the paper's Algorithm 1 on the scored rows: contributions, running sums, their norms.

For each row, in float32 whatever the models' dtype (near-equal models make FTC a difference of near-equal
numbers)::

    PTC = A_PT + M_PT
    FTC = (A_FT + M_FT) - PTC
    P  += PTC,  F += FTC
    norms[layer] = |PTC|_1, |FTC|_1, |P|_1, |F|_1, |P|_2, |F|_2, P.F / (|P|_2 |F|_2)

Source: Nuti, Franzmeyer, Henriques, ICML 2025, arXiv 2506.23423, §4.3, §4.4; the last three are ours. In
place, and with FT's rows gathered on the way. A cosine with a vector of zeros is NaN.

Floor in bytes: R H (4 B + 16), four inputs of B bytes a number, two sums read and written. Few rows are
bound by launches, so there is one, where torch needs 20 with the gathers.

Error: P and F are the twin's bit for bit (elementwise, no product to fuse). A norm is one float32 sum of H
terms >= 0, off by a relative 2^-24 times the depth of the additions, log2(BLOCK) + H / BLOCK; a cosine, whose
terms have signs, by as much absolutely. A program sums its row in one fixed order, without atomics, so a norm
does not depend on the batch.

Shape suffixes: T tokens, R rows, L layers, H hidden size, 7 norms.
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

NORMS = 7
"""How many numbers a layer's row gets."""

MOST_COLUMNS = 2048
COLUMNS_PER_WARP = 128
"""16 warps of 4 columns a thread: about 50 registers, so that a multiprocessor holds two programs (of 4096
columns at 8 warps, with blocks of partial sums, it held one, at 255)."""

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _accumulate_contribution_kernel(
        pt_attention,  # [R, H]
        pt_mlp,  # [R, H]
        ft_attention,  # [R, H], or [T, H] if there are rows for it
        ft_mlp,  # likewise
        cum_ptc,  # in and out [R, H] float32
        cum_ftc,
        norms,  # out [R, 7] float32
        attention_rows,  # [R] or None
        mlp_rows,
        pt_attention_stride,
        pt_mlp_stride,
        ft_attention_stride,
        ft_mlp_stride,
        cum_ptc_stride,
        cum_ftc_stride,
        norms_stride,
        hidden_size,
        BLOCK_H: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        attention_row = tl.load(attention_rows + row).to(tl.int64) if attention_rows is not None else row
        mlp_row = tl.load(mlp_rows + row).to(tl.int64) if mlp_rows is not None else row
        if (attention_row < 0) | (mlp_row < 0):
            return
        pt_attention += row * pt_attention_stride
        pt_mlp += row * pt_mlp_stride
        ft_attention += attention_row * ft_attention_stride
        ft_mlp += mlp_row * ft_mlp_stride
        cum_ptc += row * cum_ptc_stride
        cum_ftc += row * cum_ftc_stride

        # Numbers, not blocks of partial sums: seven of those would hold half of the registers all along.
        ptc_norm, ftc_norm, cum_ptc_norm, cum_ftc_norm = 0.0, 0.0, 0.0, 0.0
        cum_ptc_squares, cum_ftc_squares, products = 0.0, 0.0, 0.0
        for start in range(0, hidden_size, BLOCK_H):
            column = start + tl.arange(0, BLOCK_H)
            inside = column < hidden_size
            ptc = _added(pt_attention + column, pt_mlp + column, inside)
            ftc = _added(ft_attention + column, ft_mlp + column, inside) - ptc
            new_cum_ptc = tl.load(cum_ptc + column, mask=inside, other=0.0) + ptc
            new_cum_ftc = tl.load(cum_ftc + column, mask=inside, other=0.0) + ftc
            tl.store(cum_ptc + column, new_cum_ptc, mask=inside)
            tl.store(cum_ftc + column, new_cum_ftc, mask=inside)
            ptc_norm += tl.sum(tl.abs(ptc), axis=0)
            ftc_norm += tl.sum(tl.abs(ftc), axis=0)
            cum_ptc_norm += tl.sum(tl.abs(new_cum_ptc), axis=0)
            cum_ftc_norm += tl.sum(tl.abs(new_cum_ftc), axis=0)
            cum_ptc_squares += tl.sum(new_cum_ptc * new_cum_ptc, axis=0)
            cum_ftc_squares += tl.sum(new_cum_ftc * new_cum_ftc, axis=0)
            products += tl.sum(new_cum_ptc * new_cum_ftc, axis=0)
        norms += row * norms_stride
        tl.store(norms, ptc_norm)
        tl.store(norms + 1, ftc_norm)
        tl.store(norms + 2, cum_ptc_norm)
        tl.store(norms + 3, cum_ftc_norm)
        _store_l2_and_cosine(norms + 4, cum_ptc_squares, cum_ftc_squares, products)

    @triton.jit
    def _added(first, second, inside):
        first = tl.load(first, mask=inside, other=0.0).to(tl.float32)
        return first + tl.load(second, mask=inside, other=0.0).to(tl.float32)

    @triton.jit
    def _store_l2_and_cosine(out, cum_ptc_squares, cum_ftc_squares, products):
        cum_ptc_l2_norm = tl.sqrt(cum_ptc_squares)
        cum_ftc_l2_norm = tl.sqrt(cum_ftc_squares)
        tl.store(out, cum_ptc_l2_norm)
        tl.store(out + 1, cum_ftc_l2_norm)
        tl.store(out + 2, products / cum_ptc_l2_norm / cum_ftc_l2_norm)


def accumulate_contribution_triton(
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention: Tensor,
    ft_mlp: Tensor,
    cum_ptc_RH: Tensor,
    cum_ftc_RH: Tensor,
    norms_RL7: Tensor,
    layer: int,
    *,
    attention_rows_R: Tensor | None = None,
    mlp_rows_R: Tensor | None = None,
) -> None:
    """``accumulate_contribution`` by one launch, on CUDA tensors or in Triton's interpreter. Not float64."""
    require_triton()
    models = pt_attention_RH, pt_mlp_RH, ft_attention, ft_mlp
    _check(*models, cum_ptc_RH, cum_ftc_RH, norms_RL7, layer, attention_rows_R, mlp_rows_R, FLOATS)
    count, hidden_size = pt_attention_RH.shape
    if count == 0:
        return
    # The layer is an offset here and not an argument there: Triton would compile layer 1 apart.
    norms_R7 = norms_RL7[:, layer]
    tensors = *models, cum_ptc_RH, cum_ftc_RH, norms_R7
    block, warps = launch_size(hidden_size, MOST_COLUMNS, COLUMNS_PER_WARP)
    _accumulate_contribution_kernel[(count,)](
        *tensors,
        attention_rows_R,
        mlp_rows_R,
        *(tensor.stride(0) for tensor in tensors),
        hidden_size,
        BLOCK_H=block,
        num_warps=warps,
    )


def accumulate_contribution_torch(
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention: Tensor,
    ft_mlp: Tensor,
    cum_ptc_RH: Tensor,
    cum_ftc_RH: Tensor,
    norms_RL7: Tensor,
    layer: int,
    *,
    attention_rows_R: Tensor | None = None,
    mlp_rows_R: Tensor | None = None,
) -> None:
    """The twin of ``accumulate_contribution_triton``; with float64 inputs, sums and norms are float64."""
    models = pt_attention_RH, pt_mlp_RH, ft_attention, ft_mlp
    dtypes = (*FLOATS, torch.float64)
    _check(*models, cum_ptc_RH, cum_ftc_RH, norms_RL7, layer, attention_rows_R, mlp_rows_R, dtypes)
    real_R1 = None
    if attention_rows_R is not None:
        ft_attention = ft_attention.index_select(0, attention_rows_R.clamp(min=0))
        real_R1 = (attention_rows_R >= 0)[:, None]
    if mlp_rows_R is not None:
        ft_mlp = ft_mlp.index_select(0, mlp_rows_R.clamp(min=0))
        if mlp_rows_R is not attention_rows_R:
            real_mlp_R1 = (mlp_rows_R >= 0)[:, None]
            real_R1 = real_mlp_R1 if real_R1 is None else real_R1 & real_mlp_R1

    wide = cum_ptc_RH.dtype
    ptc_RH = pt_attention_RH.to(wide) + pt_mlp_RH.to(wide)
    ftc_RH = ft_attention.to(wide) + ft_mlp.to(wide) - ptc_RH
    if real_R1 is not None:
        # -0.0, because x + -0.0 is x for every x, also for -0.0.
        ptc_RH = torch.where(real_R1, ptc_RH, -0.0)
        ftc_RH = torch.where(real_R1, ftc_RH, -0.0)
    cum_ptc_RH += ptc_RH
    cum_ftc_RH += ftc_RH
    vectors = (ptc_RH, ftc_RH, cum_ptc_RH, cum_ftc_RH)
    columns = [vector.abs().sum(dim=-1) for vector in vectors]
    columns += [vector.square().sum(dim=-1).sqrt() for vector in vectors[2:]]
    columns.append((cum_ptc_RH * cum_ftc_RH).sum(dim=-1) / columns[4] / columns[5])
    norms_R7 = torch.stack(columns, dim=-1)
    if real_R1 is not None:
        norms_R7 = torch.where(real_R1, norms_R7, norms_RL7[:, layer])
    norms_RL7[:, layer] = norms_R7


def _check(
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention: Tensor,
    ft_mlp: Tensor,
    cum_ptc_RH: Tensor,
    cum_ftc_RH: Tensor,
    norms_RL7: Tensor,
    layer: int,
    attention_rows_R: Tensor | None,
    mlp_rows_R: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    if torch.compiler.is_compiling():  # no guards on shapes; on CUDA the launcher checks when it runs
        return
    expect_matrix("pt_attention_RH", pt_attention_RH)
    shape, dtype, device = tuple(pt_attention_RH.shape), pt_attention_RH.dtype, pt_attention_RH.device
    wide = (torch.promote_types(dtype, torch.float32),)
    expect("pt_attention_RH", pt_attention_RH, shape, dtypes, device)
    expect("pt_mlp_RH", pt_mlp_RH, shape, (dtype,), device)
    expect("cum_ptc_RH", cum_ptc_RH, shape, wide, device)
    expect("cum_ftc_RH", cum_ftc_RH, shape, wide, device)
    for name, tensor, rows in (
        ("attention", ft_attention, attention_rows_R),
        ("mlp", ft_mlp, mlp_rows_R),
    ):
        if rows is not None:
            expect(f"{name}_rows_R", rows, shape[:1], INDICES, device)
            expect_matrix(f"ft_{name}", tensor)
        expect(f"ft_{name}", tensor, shape if rows is None else (len(tensor), shape[1]), (dtype,), device)
    layers = norms_RL7.shape[1] if norms_RL7.ndim == 3 else 0
    expect("norms_RL7", norms_RL7, (shape[0], layers, NORMS), wide, device)
    if not 0 <= layer < layers:
        raise ValueError(f"layer: expected 0 to {layers - 1}, got {layer}")


def _fake(*_, **__):
    return None


register(
    "accumulate_contribution",
    accumulate_contribution_torch,
    accumulate_contribution_triton,
    _fake,
    mutates=("cum_ptc_RH", "cum_ftc_RH", "norms_RL7"),
)


def accumulate_contribution(
    pt_attention_RH: Tensor,
    pt_mlp_RH: Tensor,
    ft_attention: Tensor,
    ft_mlp: Tensor,
    cum_ptc_RH: Tensor,
    cum_ftc_RH: Tensor,
    norms_RL7: Tensor,
    layer: int,
    *,
    attention_rows_R: Tensor | None = None,
    mlp_rows_R: Tensor | None = None,
) -> None:
    """Add one layer to the sums and write its norms, in place; the formula is the module's.

    PT's attention and MLP outputs are ``[R, H]``, FT's too, or ``[T, H]`` with the int32 or int64 rows to
    take from it; all four have one dtype of float32, float16, bfloat16 (on a CPU also float64) and any row
    stride. The sums ``[R, H]`` and the norms ``[R, L, 7]`` are float32 (float64); make the norms with
    torch.zeros (made by torch.empty inside a graph, Inductor of torch 2.13 may fail on a CPU). A row whose
    index is below 0, in either list, is padding: nothing is written for it. ValueError or TypeError names
    the argument that does not fit.
    """
    accumulate = accumulate_contribution_torch
    if pt_attention_RH.is_cuda:
        accumulate = torch.ops.tuco.accumulate_contribution
    accumulate(
        pt_attention_RH,
        pt_mlp_RH,
        ft_attention,
        ft_mlp,
        cum_ptc_RH,
        cum_ftc_RH,
        norms_RL7,
        layer,
        attention_rows_R=attention_rows_R,
        mlp_rows_R=mlp_rows_R,
    )
