"""What torch.compile makes of our norms on a GPU: Inductor's own code for sm_90, generated without a device.

Its tensors are fake and its device is described, not asked; nothing is run. So the kernels are those that a
Hopper card gets, and their number and neighbours can be counted here; their speed cannot.
"""

import importlib
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from tuco_kernels import add_rms_norm

pytest.importorskip("triton")

LAYERS, TOKENS, HIDDEN, KV, EPS = 3, 2048, 4096, 1024, 1e-5
HOPPER = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    warp_size=32,
    total_memory=80 << 30,
    L2_cache_size=50 << 20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    clock_rate=1_980_000,
    memory_clock_rate=2_619_000,
    memory_bus_width=5120,
)


@contextmanager
def hopper():
    """A described device, to Inductor."""
    described = staticmethod(lambda *_: HOPPER)
    with ExitStack() as patches:
        for interface in (CudaInterface, CudaInterface.Worker):
            patches.enter_context(mock.patch.object(interface, "get_device_properties", described))
        for place, value in (
            ("torch._inductor.scheduler.has_triton", True),  # cached without a device
            ("torch.cuda.is_available", True),
            ("torch.cuda.get_device_properties", HOPPER),
            ("torch.cuda.current_device", 0),
            ("torch.cuda.device_count", 1),
            ("torch.cuda.get_device_capability", (9, 0)),
            ("torch.utils._triton.triton_hash_with_backend", "none"),  # asks the driver; a key of caches only
        ):
            patches.enter_context(mock.patch(place, lambda *_, value=value: value))
        patches.enter_context(mock.patch("torch.version.cuda", "12.8"))
        yield


def generated(function, *shapes: tuple[int, ...]) -> str:
    """Inductor's code for ``function`` of bfloat16 tensors on the described device."""
    made: list[str] = []

    def backend(graph, inputs):
        traced = make_fx(graph, decomposition_table=select_decomp_table())(*inputs)
        lowering = GraphLowering(traced, shape_env=mode.shape_env)
        with hopper(), DebugContext(), V.set_graph_handler(lowering), V.set_fake_mode(mode):
            lowering.run(*inputs)
            code, _ = lowering.codegen()
        made.append(code.value)
        return graph.forward

    torch._dynamo.reset()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        tensors = [torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes]
        torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*tensors)
    (code,) = made
    return code


def stock_norm(h: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """vLLM's native fused add and norm, which is what it compiles on CUDA (vllm/ir/ops/layernorm.py)."""
    s = h.float() + x.float()
    normed = s * torch.rsqrt(s.pow(2).mean(dim=-1, keepdim=True) + EPS)
    return (normed.to(weight.dtype) * weight).to(x.dtype), s.to(x.dtype)


def layers(
    h: Tensor, x: Tensor, ft_gain: Tensor, pt_gain: Tensor, ft: Tensor, pt: Tensor
) -> tuple[Tensor, ...]:
    """The input norms of ``LAYERS`` layers in the executor's order, PT's first; products part them."""
    keys = []
    for _ in range(LAYERS):
        keys.append(add_rms_norm(h, x, pt_gain, EPS) @ pt)
        normed, x = stock_norm(h, x, ft_gain)
        h = normed @ ft
    return torch.stack(keys).sum(0), h, x


SHAPES = ((TOKENS, HIDDEN),) * 2 + ((HIDDEN,),) * 2 + ((HIDDEN, HIDDEN), (HIDDEN, KV))


def launches(code: str) -> int:
    """Of Inductor's own kernels that hold a reduction, as norms do."""
    lines = code[code.index("def call(") :].splitlines()
    return sum(".run(" in line and ("triton_red" in line or "triton_per" in line) for line in lines)


def test_both_models_norms_are_one_kernel_a_layer():
    code = generated(layers, *SHAPES)
    assert "tuco" not in code[code.index("def call(") :], "an opaque op stands where the twin should"
    assert launches(code) == LAYERS


def test_it_would_be_two_with_our_op(monkeypatch):
    """That the count can tell."""
    module = importlib.import_module("tuco_kernels.dual_rms_norm")
    monkeypatch.setattr(module, "twin_in_compiled_code", lambda x: not x.is_cuda)
    code = generated(layers, *SHAPES)
    calls = code[code.index("def call(") :]
    assert calls.count("= torch.ops.tuco.dual_rms_norm") == LAYERS
    assert launches(code) == LAYERS  # FT's own, beside them
