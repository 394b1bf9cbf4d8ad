"""Which CUDA graphs a step of an engine that generates may replay, and what a runner is told of it.

Three kinds of steps:

- Nobody needs PT: FT runs as vLLM's own model does, so all that vLLM has: full graphs for decode steps. In
  a full graph no code of ours runs, so a step in which somebody needs PT must never be given one.
- All who need PT decode, in all layers: piecewise graphs of ``SteeringModel``. A graph is found by the padded
  number of tokens T, so U = S = C = T there (``graph_rows``), and a graph pays PT for all of them, which in a
  decode step is cheap beside launching a few thousand kernels.
- All others that need PT: none. A prompt among them would pay PT's layers for all of its tokens; PT in some
  layers is not compiled; rows behind the tokens (adapters) are not a function of T.

A runner asks vLLM for a graph before the model runs. What it is told is that the step is no uniform decode:
that alone keeps it out of full graphs, is what vLLM exchanges between data-parallel ranks (so none of them
waits for another), and leaves T padded as for a piecewise graph, which the model then takes or does not.

All that is decided follows from the requests and their token counts, which every tensor-parallel rank is told
alike.

None of this has run on a GPU. On a CPU the padded steps run uncaptured (``tests/parity/test_graph_steps``):
that graphs record, that a replay finds its inputs where they were, and what that gains are unseen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuco_vllm.engine.compat import CUDAGraphMode
from tuco_vllm.steering import PLAIN, Steering


def graphs_of_step(
    scheduled: Sequence[int] | NDArray[Any],
    num_logits: Sequence[int] | NDArray[Any],
    steerings: Sequence[Steering],
    *,
    stacked: bool,
) -> CUDAGraphMode:
    """The most that the step may replay: FULL (all that vLLM has), PIECEWISE or NONE.

    Of its N requests: tokens in the step ``[N]``, rows of logits ``[N]`` (1, or 1 + drafts) and wishes.
    ``stacked``: PT's rows stand behind the tokens (adapters).
    """
    asking = [steering for steering in steerings if steering.needs_pt or steering.rows is not None]
    if not asking:
        return CUDAGraphMode.FULL
    decodes = bool(np.array_equal(scheduled, num_logits))  # of a prompt's tokens only the last has logits
    whole = any(steering.needs_pt and steering.pt_layers is None for steering in asking)
    reads_prompts = any(steering.rows is not None for steering in asking)
    if stacked or reads_prompts or not decodes or not whole:
        return CUDAGraphMode.NONE
    return CUDAGraphMode.PIECEWISE


class Captures:
    """Mixed into a stock runner of either version: while it captures graphs, the model knows."""

    def capture_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Piecewise graphs of both models, full ones of FT."""
        with self.model.rows.capturing():
            return super().capture_model(*args, **kwargs)  # type: ignore[misc]

    def profile_cudagraph_memory(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The memory of all of these."""
        with self.model.rows.capturing():
            return super().profile_cudagraph_memory(*args, **kwargs)  # type: ignore[misc]


class GraphsV1(Captures):
    """Mixed into a V1 runner, behind what prepares its steps."""

    def _determine_batch_execution_and_padding(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model.rows.step.graphs != CUDAGraphMode.FULL:
            kwargs["force_uniform_decode"] = False
        return super()._determine_batch_execution_and_padding(*args, **kwargs)  # type: ignore[misc]


class GraphsV2(Captures):
    """Mixed into a V2 runner, which prepares a step once its graph is chosen: so wishes are looked up."""

    def gather_batch_req_state(self: Any, scheduler_output: Any, dummy_run: bool) -> Any:
        """The batch, and the number of tokens of each request, if they decode alike and nobody needs PT."""
        batch, uniform = super().gather_batch_req_state(scheduler_output, dummy_run)  # type: ignore[misc]
        if batch is None:  # nobody's
            return batch, uniform
        steerings = [self.model_state.steerings.get(name, PLAIN) for name in batch.req_ids]
        drafts = batch.num_draft_tokens_np
        num_logits = np.ones_like(batch.num_scheduled_tokens) if drafts is None else drafts + 1
        graphs = self.model.rows.graphs_of(batch.num_scheduled_tokens, num_logits, steerings)
        return batch, uniform if graphs == CUDAGraphMode.FULL else None
