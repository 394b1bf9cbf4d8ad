"""Where a call of a kernel goes, and what it must bring.

A public function looks at its tensors' device. On CUDA it calls ``torch.ops.tuco.<name>``, whose
implementation is the Triton launcher: opaque to torch.compile, safe in CUDA graphs. Elsewhere it calls the
torch twin itself, *not* the op: torch.compile can then fuse the twin into its neighbours, where an opaque op
would cost more than it saves. The ops work on a CPU all the same.

The norms go to the twin in compiled code on CUDA too (``twin_in_compiled_code``): there Inductor makes one
kernel of FT's add and norm and PT's norm of the same sum, which is less to read and write than any op of ours
beside FT's own. ``accumulate_contribution`` and ``steer_residual`` stay ops: nothing is there to fuse.

A launcher runs on the current CUDA device, as vLLM's workers set it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

try:
    import triton  # noqa: F401
except ImportError:
    HAS_TRITON = False
else:
    HAS_TRITON = True

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels load and store; they compute in float32."""

INDICES = (torch.int32, torch.int64)

_LIBRARY = torch.library.Library("tuco", "FRAGMENT")


def register(
    name: str,
    twin: Callable[..., object],
    launcher: Callable[..., object],
    fake: Callable[..., object],
    mutates: Sequence[str] = (),
) -> None:
    """Define ``torch.ops.tuco.<name>``: the twin on CPU, the launcher on CUDA; schema from the annotations.

    Not ``torch.library.custom_op``, which wraps every call in Python of its own (autograd, version counters):
    a layer of a small batch is bound by its launches. vLLM registers its ops like this too.
    """
    _LIBRARY.define(name + torch.library.infer_schema(twin, mutates_args=mutates))
    _LIBRARY.impl(name, twin, "CPU")
    _LIBRARY.impl(name, launcher, "CUDA")
    torch.library.register_fake(f"tuco::{name}", fake, lib=_LIBRARY)


def twin_in_compiled_code(x: Tensor) -> bool:
    """Whether a norm of ``x`` is the twin's: on a CPU, and wherever torch.compile is looking."""
    return torch.compiler.is_compiling() or not x.is_cuda


def require_triton() -> None:
    """RuntimeError where the launchers cannot work."""
    if not HAS_TRITON:
        raise RuntimeError("this launcher needs Triton: `pip install triton`, or call the torch twin instead")


def expect(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Check one argument. ValueError (shape, device, layout) or TypeError (dtype), naming what was expected.

    Rows may have any stride; within a row numbers are adjacent, which is what makes wide loads possible.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {tensor.device}")
    if shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name}: expected a last dimension of stride 1, got strides {tensor.stride()}")


def expect_matrix(name: str, tensor: Tensor) -> None:
    """ValueError unless ``tensor`` has two dimensions, which the others' shapes are then derived from."""
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got {tensor.ndim}")


def launch_size(hidden_size: int, most: int, columns_per_warp: int = 512) -> tuple[int, int]:
    """(columns a program holds at once, warps). The columns are a power of two, ``most`` at most.

    A warp for every 512 columns gives a thread 16 of them: two 16-byte loads of 16-bit numbers a tensor.
    """
    block = min(1 << (hidden_size - 1).bit_length(), most)
    return block, min(max(block // columns_per_warp, 1), 16)
