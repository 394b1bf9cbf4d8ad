"""Model Runner V1 (CPUs, and GPUs by choice) with LoRA adapters: PT's rows in vLLM's mapping, without one.

vLLM's LoRA products take a batch's tokens in the order in which its mapping names their adapters. PT's rows
come behind the tokens (``adapter_layers``), so they stand there too, as tokens that have none.
"""

import copy
from typing import Any

import torch

from tuco_vllm.engine.compat import current_platform


class AdapterRunner:
    """Mixed into a V1 runner, over ``ScoringRunner``."""

    _rows_behind: int | None = None
    """PT's rows in the step that is being prepared; None in a run of no requests."""

    def load_lora_model(self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        roomy = copy.copy(vllm_config)
        roomy.scheduler_config = copy.copy(vllm_config.scheduler_config)
        roomy.scheduler_config.max_num_batched_tokens *= 2  # every token may be a row
        model = super().load_lora_model(model, roomy, device)  # type: ignore[misc]
        if current_platform.is_cpu():
            add_empty_slot(model)
        model.adapters_wrapped()
        return model

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        args, kwargs = self._adapters_of_step
        self._rows_behind = self.model.rows.count(len(num_scheduled_tokens))
        try:
            super().set_active_loras(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._rows_behind = None
        return prepared

    def set_active_loras(self: Any, *args: Any, **kwargs: Any) -> None:
        """Put off until the step's rows are known."""
        self._adapters_of_step = (args, kwargs)

    def _set_active_loras(self: Any, of_prompts: Any, of_tokens: Any, *args: Any, **kwargs: Any) -> None:
        rows = self._rows_behind
        if rows is None:
            rows = self.model.rows.count_without_requests(len(of_tokens))
        rows = self.model.rows_behind(rows)
        self.model.mapped = (len(of_tokens), rows)
        super()._set_active_loras(of_prompts, (*of_tokens, *(0,) * rows), *args, **kwargs)  # type: ignore[misc]


def add_empty_slot(model: Any) -> None:
    """Give every LoRA layer one slot more, which stays zero.

    vLLM 0.32 takes on a CPU, for a token without an adapter beside tokens with one, the slot at -1: the last
    (vllm/lora/ops/torch_ops/lora_ops.py).
    """
    for module in model.modules():
        for name in ("lora_a_stacked", "lora_b_stacked"):
            slots = getattr(module, name, None)
            if isinstance(slots, tuple):
                setattr(module, name, tuple(_one_more(each) for each in slots))
            elif isinstance(slots, torch.Tensor) and name == "lora_b_stacked":
                setattr(module, name, _one_more(slots))  # of an embedding, whose A is found by another index


def _one_more(slots: torch.Tensor) -> torch.Tensor:
    return torch.cat([slots, torch.zeros_like(slots[:1])])
