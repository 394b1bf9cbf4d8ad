"""Every variant of the kernels compiles for Hopper, down to machine code. It needs no device, only Triton."""

import importlib

import pytest

DTYPES = ["fp32", "fp16", "bf16"]
VARIANTS = [
    # kernel, arguments that are None, its other constants
    ("dual_rms_norm", ["rows"], {"ROUND_SUM": False, "PLUS_ONE": False, "BLOCK_H": 4096, "ONE_BLOCK": True}),
    (
        "dual_rms_norm",
        ["h", "rows", "new_x", "y_b", "g_b"],
        {"ROUND_SUM": True, "PLUS_ONE": True, "BLOCK_H": 1, "ONE_BLOCK": True},
    ),
    (
        "dual_rms_norm",
        ["new_x", "y_b", "g_b"],
        {"ROUND_SUM": True, "PLUS_ONE": False, "BLOCK_H": 8192, "ONE_BLOCK": False},
    ),
    ("accumulate_contribution", [], {"BLOCK_H": 4096}),
    ("accumulate_contribution", ["attention_rows", "mlp_rows"], {"BLOCK_H": 64}),
    ("steer_residual", [], {"BLOCK_H": 4096}),
]
SCALARS = {"eps_a": "fp32", "eps_b": "fp32"}
FLOAT32 = ("alpha", "cum_ptc", "cum_ftc", "norms")


def argument_type(name: str, dtype: str) -> str:
    """As the launchers pass it: tensors of the model's dtype, unless they are something else by contract."""
    if name.endswith(("_stride", "hidden_size")):
        return "i32"
    if name.endswith("rows"):
        return "*i64"
    return SCALARS.get(name) or ("*fp32" if name in FLOAT32 else f"*{dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "missing", "constants"), VARIANTS)
def test_compiles_for_hopper(name, missing, constants, dtype):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"tuco_kernels.{name}"), f"_{name}_kernel")
    constants = dict.fromkeys(missing) | constants
    signature = {
        argument: "constexpr" if argument in constants else argument_type(argument, dtype)
        for argument in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert len(binary.asm["cubin"]) > 0
