"""Every variant of the kernels compiles for Hopper, down to machine code. It needs no device, only Triton."""

import importlib
import re
import subprocess

import pytest
from tuco_kernels.accumulate_contribution import COLUMNS_PER_WARP, MOST_COLUMNS
from tuco_kernels.dispatch import launch_size

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
    ("accumulate_contribution", [], {"BLOCK_H": MOST_COLUMNS}),
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


def compiled(name, missing, constants, dtype, warps):
    """A kernel's variant, as PTX and machine code for Hopper."""
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
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "missing", "constants"), VARIANTS)
def test_compiles_for_hopper(name, missing, constants, dtype):
    assert len(compiled(name, missing, constants, dtype, warps=8)["cubin"]) > 0


@pytest.mark.parametrize("missing", [[], ["attention_rows", "mlp_rows"]], ids=["gathered", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_programs_of_accumulate_contribution_fit_a_multiprocessor(dtype, missing, tmp_path):
    """Of 16 warps each: 65,536 registers for 1,024 threads. As the launcher launches Llama-3-8B's width."""
    from triton.backends.nvidia.compiler import get_ptxas

    columns, warps = launch_size(4096, MOST_COLUMNS, COLUMNS_PER_WARP)
    assert warps == 16
    ptx = tmp_path / "kernel.ptx"
    ptx.write_text(compiled("accumulate_contribution", missing, {"BLOCK_H": columns}, dtype, warps)["ptx"])
    assembler = [get_ptxas(90).path, "-v", "-arch=sm_90a", str(ptx), "-o", "/dev/null"]
    said = subprocess.run(assembler, capture_output=True, text=True, check=True).stderr
    assert int(re.search(r"Used (\d+) registers", said)[1]) <= 64
    assert "0 bytes spill stores, 0 bytes spill loads" in said
