"""The rows of a step whose piecewise graphs are replayed: as many as T, always at one address.

A graph of ``SteeringModel`` is recorded for a padded number of tokens T and holds the sizes U, S and C, so
all are T there. The step's own rows come first, and pads behind them: -1 as an index, which is the last
token, real or pad, and to the kernels no row; alpha 1. What a pad row computes nobody reads. It must be a
number all the same: attention stops at the step's own rows and leaves the others' memory as it was, and a NaN
that chooses experts may choose one that there is not. So PT's attention sets them to zero, between the graphs
(``zero_pad_rows``).

A plain request has no row of PT here, and none of its tokens writes PT's keys and values (slot -1), so what
PT's cache holds of it is never read.

The buffers are filled on the stream that the graphs run on: a step scheduled ahead of the one before
overwrites them only when that one is done. What a graph returns lies in its memory until the next replay;
scores are copied out in the step (``SteeringRows.by_logits``).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuco_vllm.engine.compat import async_tensor_h2d
from tuco_vllm.engine.rows import rows_in
from tuco_vllm.engine.step_plan import StepPlan

PAD = -1

INDEX_NAMES = ("tokens_U", "rows_S", "rows_in_U", "scored_in_S")
"""Of ``StepPlan``, what the model takes beside alpha."""


class GraphRows:
    """Buffers for up to ``most`` tokens and ``num_layers`` layers on ``device``."""

    def __init__(self, most: int, num_layers: int, device: Any) -> None:
        self.num_layers = num_layers
        # A buffer each: what is compiled takes every input for one of its own, at an aligned address.
        self.indices = {name: torch.full((most,), PAD, device=device) for name in INDEX_NAMES}
        self.alpha = torch.ones(most * num_layers, device=device)

    def fill(self, plan: StepPlan | None, num_tokens: int) -> dict[str, Tensor]:
        """The plan's rows and pads, by their names: int64 ``[T]`` each, and ``alpha_LS`` ``[L, T]`` float32.
        Without a plan pads alone."""
        made = {}
        for name, buffer in self.indices.items():
            values = () if plan is None else getattr(plan, name)
            made[name] = async_tensor_h2d(padded(values, num_tokens), out=buffer[:num_tokens])
        alpha_LT = np.ones((self.num_layers, num_tokens), dtype=np.float32)
        if plan is not None:
            alpha_LT[:, : plan.alpha_LS.shape[1]] = plan.alpha_LS
        # Row by row in memory whatever T is.
        whole = self.alpha[: alpha_LT.size].view(self.num_layers, num_tokens)
        made["alpha_LS"] = async_tensor_h2d(alpha_LT, out=whole)
        return made


def padded(values: Any, size: int) -> NDArray[np.int64]:
    """``values`` ``[n]``, and pads up to ``size``."""
    made = np.full(size, PAD, dtype=np.int64)
    made[: len(values)] = values
    return made


def zero_pad_rows(attention: Any) -> None:
    """Let an ``Attention`` of PT's (vLLM's) set to zero what it does not compute."""
    stock = attention.impl.forward

    def forward(*args: Any, output: Tensor, **kwargs: Any) -> Any:
        made = stock(*args, output=output, **kwargs)
        metadata = args[5]  # layer, query, key, value, cache, metadata
        if metadata is not None:
            output[len(rows_in(metadata)) :] = 0
        return made

    attention.impl.forward = forward  # its class has slots, so that it cannot be exchanged as a layer's is
