"""Model runners with LoRA adapters, V1 and V2: PT's rows in vLLM's mapping, without an adapter.

vLLM's LoRA products take a batch's tokens in the order in which its mapping names their adapters. PT's rows
come behind the tokens (``adapter_layers``), so they stand there too, as tokens that have none. How many there
are is known when a step's rows are; so its mapping waits for them.
"""

import copy
from functools import partial
from typing import Any

import torch

from tuco_vllm.engine.compat import current_platform


class AdapterRunner:
    """Mixed into a stock runner, over what else is."""

    _step_comes = False
    """Whether the mapping that is set next is one of requests."""
    _mapping: tuple[Any, ...] = ()

    def load_lora_model(self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        roomy = copy.copy(vllm_config)
        roomy.scheduler_config = copy.copy(vllm_config.scheduler_config)
        roomy.scheduler_config.max_num_batched_tokens *= 2  # every token may be a row
        model = super().load_lora_model(model, roomy, device)  # type: ignore[misc]
        if current_platform.is_cpu():
            mend_on_cpu(model)
        model.adapters_wrapped(self._map_rows)
        return model

    def _prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        """V1's, of a step."""
        self._step_comes = True
        return super()._prepare_inputs(*args, **kwargs)  # type: ignore[misc]

    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        """V2's, of a step."""
        self._step_comes = True
        return super().prepare_inputs(*args, **kwargs)  # type: ignore[misc]

    def _set_active_loras(self: Any, *mapping: Any) -> None:
        self._mapping, is_step = mapping, self._step_comes
        self._step_comes = False
        if not is_step:
            self._map_rows(self.model.rows.count_without_requests(len(mapping[1])))

    def _map_rows(self: Any, rows: int) -> None:
        """The mapping that was set last, and so many rows behind its tokens."""
        of_prompts, of_tokens, *others = self._mapping
        rows = self.model.rows_behind(rows)
        self.model.set_mapped(len(of_tokens), rows)  # by its method: it may be wrapped for CUDA graphs
        super()._set_active_loras(of_prompts, (*of_tokens, *(0,) * rows), *others)  # type: ignore[misc]


def mend_on_cpu(model: Any) -> None:
    """Two things of vLLM's LoRA on a CPU (vllm/lora/ops/torch_ops/lora_ops.py).

    Its products gather every token's A and B, which takes ten times what the model does; ours group tokens by
    adapter. And 0.32 takes for a token without an adapter, beside tokens with one, the slot at -1: the last.
    Embedding and head, whose products stay vLLM's, get a slot more, which stays zero.
    """
    mappings = {}
    for module in model.modules():
        if isinstance(getattr(module, "lora_b_stacked", None), torch.Tensor):
            slots = module.lora_b_stacked
            module.lora_b_stacked = torch.cat([slots, torch.zeros_like(slots[:1])])
        if hasattr(module, "punica_wrapper"):
            mappings[id(module.punica_wrapper)] = module.punica_wrapper
    for mapping in mappings.values():
        mapping.add_lora_linear = partial(_add_by_adapter, mapping)


def _add_by_adapter(
    mapping: Any,
    y: Any,
    x: Any,
    lora_a_stacked: Any,
    lora_b_stacked: Any,
    scale: float,
    slices: Any,
    **_: Any,
) -> None:
    """y += scale B A x, of each token's own adapter; in place. As PunicaWrapperCPU's ``add_lora_linear``."""
    slots_T = mapping.token_lora_indices
    for slot in [] if mapping.no_lora else slots_T.unique().tolist():
        if slot < 0:
            continue
        own: Any = (slots_T == slot).nonzero()[:, 0]
        if int(own[-1]) - int(own[0]) == len(own) - 1:  # one after the other: nothing is copied
            own = slice(int(own[0]), int(own[-1]) + 1)
        own_x, start = x[own], 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, slices, strict=True):
            shrunk = scale * (own_x @ a[slot, 0].T)
            if isinstance(own, slice):
                y[own, start : start + size].addmm_(shrunk, b[slot, 0].T)
            else:
                y[own, start : start + size] += shrunk @ b[slot, 0].T
            start += size
