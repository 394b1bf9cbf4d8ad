"""vLLM's compile mode of GPUs (VLLM_COMPILE: piecewise, Inductor) on a CPU, in a process that does only this.

On a CPU vLLM compiles by another mode; ``prepare`` puts GPUs' back. Real are then the split of the graph at
attention and cache updates, its symbolic sizes, one compiled piece for every size, without guards, and
Inductor's code, in C++ for CUDA's; on Model Runner V2 (``v2_on_cpu``), whose batches may be padded as for
CUDA graphs. ``opaque``: kernels are called as the ops that torch.compile cannot look into, as on CUDA, with
the twins behind them; else the twins are compiled with the rest. LoRA's products, whose loops on a CPU cannot
be compiled, are ops always, as vLLM's are on CUDA.
"""

import os
import sys
from collections import Counter
from typing import Any

import v2_on_cpu

OPS = ("dual_rms_norm", "accumulate_contribution", "steer_residual")
"""Of ``torch.ops.tuco``, what a CPU calls as twins. ``row_linear`` is an op everywhere."""

called: Counter[str] = Counter()
"""How often the ops were, by name."""


def prepare(opaque: bool) -> None:
    """Once, before vllm is imported."""
    v2_on_cpu.prepare()
    # The key of vLLM's cache does not know what the ops are, nor that this is a test.
    os.environ["VLLM_DISABLE_COMPILE_CACHE"] = "1"
    _compile_as_gpus_do()
    _call_lora_as_ops()
    if opaque:
        _call_ops()


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """``v2_on_cpu.run``'s answer, how many graphs were split and into how many pieces, and calls of ops."""
    from vllm.compilation.counter import compilation_counter as counter

    called.clear()
    before = counter.num_graphs_seen, counter.num_piecewise_capturable_graphs_seen
    answer = v2_on_cpu.run(spec)
    after = counter.num_graphs_seen, counter.num_piecewise_capturable_graphs_seen
    graphs, pieces = (new - old for new, old in zip(after, before, strict=True))
    return {"answer": answer, "graphs": graphs, "pieces": pieces, "called": dict(called)}


def _compile_as_gpus_do() -> None:
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.config import CompilationMode
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        config = vllm_config.compilation_config
        mode, backend = config.mode, config.backend
        stock(cls, vllm_config)
        if mode == CompilationMode.VLLM_COMPILE:
            config.mode, config.backend = mode, backend or "inductor"
            config.compile_sizes = config.compile_sizes or []
            if not config.splitting_ops:
                config.splitting_ops = [*config._attention_ops, "vllm::unified_kv_cache_update"]

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    # It takes the place of what makes ops in place again, for CUDA's ops alone.
    FixFunctionalizationPass.__call__ = lambda self, graph: None


def _call_lora_as_ops() -> None:
    import torch
    from torch import Tensor
    from vllm.lora.ops.torch_ops.lora_ops import bgmv_expand

    from tuco_vllm.engine import adapter_runner
    from tuco_vllm.engine.steering_rows import SteeringRows

    mend, add_by_adapter = adapter_runner.mend_on_cpu, adapter_runner._add_by_adapter
    mappings: list[Any] = []

    def add_linear(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], slices: list[int]) -> None:
        add_by_adapter(mappings[-1], y, x, a, b, 1.0, slices)

    def add_embedding(y: Tensor, x: Tensor, b: Tensor) -> None:
        # As CUDA's does, it takes of the mapping what there are tokens for.
        bgmv_expand(x, b, y, mappings[-1].token_lora_indices[: len(x)])

    linear = torch.library.custom_op("tuco_tests::add_linear", add_linear, mutates_args=("y",))
    embedding = torch.library.custom_op("tuco_tests::add_embedding", add_embedding, mutates_args=("y",))

    def call_linear(y: Any, x: Any, a: Any, b: Any, scale: float, slices: Any, **_: Any) -> None:
        assert scale == 1.0
        linear(y, x, list(a), list(b), list(slices))

    def call_embedding(y: Any, x: Any, b: Any, **_: Any) -> None:
        embedding(y, x, b)

    def mend_on_cpu(model: Any) -> None:
        mend(model)
        [mapping] = {m.punica_wrapper for m in model.modules() if hasattr(m, "punica_wrapper")}
        mappings.append(mapping)
        mapping.add_lora_linear, mapping.add_lora_embedding = call_linear, call_embedding

    adapter_runner.mend_on_cpu = mend_on_cpu
    # What a GPU profiles, and so compiles first, has PT's rows behind the tokens.
    SteeringRows.count_without_requests = lambda self, num_tokens: num_tokens - 2


def _call_ops() -> None:
    import torch
    import tuco_kernels.dispatch

    for name in OPS:
        module = sys.modules[f"tuco_kernels.{name}"]
        twin = getattr(module, f"{name}_torch")
        setattr(module, f"{name}_torch", getattr(torch.ops.tuco, name))

        def counted(*args: Any, twin: Any = twin, name: str = name, **kwargs: Any) -> Any:
            called[name] += 1
            return twin(*args, **kwargs)

        tuco_kernels.dispatch._LIBRARY.impl(name, counted, "CPU", allow_override=True)
