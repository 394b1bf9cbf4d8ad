"""CUDA graphs imitated on a CPU, on Model Runner V2 (``v2_on_cpu``): what can go wrong around a replay, does.

vLLM chooses a graph for each step as if some had been captured; batches are padded as for it. A full graph is
imitated by FT's stock model alone, run on the runner's padded buffers with the metadata that vLLM has built:
as in a replay, no code of the pair's own runs. What a piecewise graph holds runs uncaptured, between poisons:

- the buffers that graphs read have other rows in them before each step;
- what a step has returned is NaN when the next one runs, for its memory is the next replay's;
- attention is given NaN to write into, for nobody clears a graph's memory, and none may come of it;
- PT's cache is full of large numbers where nobody has written.

Not imitated: recording, the addresses that a graph has recorded (a unit test), streams, several ranks.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

STALE = 1e3
"""In PT's cache. Finite: a kernel may multiply what it masks by 0."""


@contextmanager
def imitated(sizes: list[int]) -> Iterator[Counter[str]]:
    """Graphs for ``sizes`` tokens. Yields how many steps ran as what: "FULL", "PIECEWISE" (of the pair), of
    these with pads "FULL padded" and "PIECEWISE padded"; "unpadded" are the pair's without a graph."""
    seen: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        _choose(patch, sizes)
        _replay_full(patch, seen)
        _poison(patch, seen)
        yield seen


def poison_cache(model: Any, layers: dict[str, Any]) -> None:
    """Before the first request: ``layers`` are the engine's attention layers by name."""
    for name in model.model.attention_names:
        layers[name].kv_cache.fill_(STALE)


def _choose(patch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager

    def dispatch(
        self: Any, num_reqs: int, num_tokens: int, uniform: int | None, *, num_active_loras: int, **_: Any
    ) -> Any:
        padded = min((size for size in sizes if size >= num_tokens), default=None)
        if padded is None:
            return BatchExecutionDescriptor(
                CUDAGraphMode.NONE, num_tokens, num_reqs, num_active_loras=num_active_loras
            )
        if uniform is not None and padded % uniform == 0 and padded // uniform <= self.max_num_reqs:
            return BatchExecutionDescriptor(
                CUDAGraphMode.FULL, padded, padded // uniform, uniform, num_active_loras=num_active_loras
            )
        return BatchExecutionDescriptor(
            CUDAGraphMode.PIECEWISE, padded, None, num_active_loras=num_active_loras
        )

    patch.setattr(CudaGraphManager, "dispatch", dispatch)


def _replay_full(patch: pytest.MonkeyPatch, seen: Counter[str]) -> None:
    from vllm.forward_context import set_forward_context
    from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager

    from tuco_vllm.engine.steering_v2 import SteeringModelState

    last: dict[str, Any] = {}
    prepare = SteeringModelState.prepare_attn

    def prepare_attn(
        self: Any, batch: Any, mode: Any, blocks: Any, slots: Any, *args: Any, **kwargs: Any
    ) -> Any:
        metadata = prepare(self, batch, mode, blocks, slots, *args, **kwargs)
        last.update(model=self.model, batch=batch, metadata=metadata, config=self.vllm_config)
        last["slots"] = build_slot_mappings_by_layer(slots, args[1])
        return metadata

    def run_fullgraph(self: Any, desc: Any) -> Any:
        batch = last["batch"]
        seen["FULL"] += 1
        seen["FULL padded"] += desc.num_tokens > batch.num_tokens
        with set_forward_context(
            last["metadata"], last["config"], num_tokens=desc.num_tokens, slot_mapping=last["slots"]
        ):
            return last["model"].stock(batch.input_ids, batch.positions, None, None)

    patch.setattr(SteeringModelState, "prepare_attn", prepare_attn)
    patch.setattr(ModelCudaGraphManager, "run_fullgraph", run_fullgraph)


def _poison(patch: pytest.MonkeyPatch, seen: Counter[str]) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    from tuco_vllm.engine import steering_model
    from tuco_vllm.engine.graph_rows import GraphRows
    from tuco_vllm.engine.pair_model import TucoForCausalLM

    accumulate = steering_model.accumulate_contribution
    fill, steered, attend = GraphRows.fill, TucoForCausalLM._steered, CPUAttentionBackendImpl.forward
    returned: list[torch.Tensor] = []

    def poisoned_fill(self: Any, plan: Any, num_tokens: int) -> Any:
        for buffer in self.indices.values():
            buffer.fill_(0)
        self.alpha.fill_(0.0)
        seen["PIECEWISE padded"] += num_tokens > len(plan.rows_S)
        return fill(self, plan, num_tokens)

    def poisoned_steered(self: Any, plan: Any, size: int | None, *args: Any) -> Any:
        for tensor in returned:
            tensor.fill_(torch.nan)
        seen["unpadded" if size is None else "PIECEWISE"] += 1
        returned[:] = steered(self, plan, size, *args)
        return tuple(returned)

    def poisoned_attend(self: Any, *args: Any, output: Any, **kwargs: Any) -> Any:
        output.fill_(torch.nan)
        return attend(self, *args, output=output, **kwargs)

    def expect_numbers(pt_attention: torch.Tensor, pt_mlp: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            assert pt_attention.isfinite().all(), "a pad row is no number"
        accumulate(pt_attention, pt_mlp, *args, **kwargs)

    patch.setattr(steering_model, "accumulate_contribution", expect_numbers)
    patch.setattr(GraphRows, "fill", poisoned_fill)
    patch.setattr(TucoForCausalLM, "_steered", poisoned_steered)
    patch.setattr(CPUAttentionBackendImpl, "forward", poisoned_attend)
