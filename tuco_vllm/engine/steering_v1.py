"""Model Runner V1 (CPUs, and GPUs by choice): set each step's plan, append the scores to what was sampled.

Chosen by ``worker_cls``: the worker builds its stock runner, whose class is then exchanged for one that adds
two overrides, and to each request's state what the request asks for.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuco_vllm.engine.compat import GPUModelRunnerV1, PlatformWorker
from tuco_vllm.engine.row_pieces import RowPieces, readings_of_step
from tuco_vllm.engine.score_columns import append_scores
from tuco_vllm.engine.scoring_rows import prompt_rows_of_step
from tuco_vllm.engine.step_plan import plan_step
from tuco_vllm.steering import steering_of


class _SteeringRunner:
    """Mixed into a V1 runner."""

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        drafts = prepared[1]
        count = self.input_batch.num_reqs
        num_logits = np.ones(count, dtype=np.int32)
        if drafts is not None:
            num_logits += np.array(drafts.num_draft_tokens, dtype=np.int32)
        for new in scheduler_output.scheduled_new_reqs:
            # Parsed once, it stays through preemption and goes with the request's own state. The bound is the
            # front's business; here a number is a number.
            steering = steering_of(new.sampling_params.extra_args, math.inf)
            self.requests[new.req_id].tuco_steering = steering
        states = [self.requests[name] for name in self.input_batch.req_ids[:count]]
        steerings = [state.tuco_steering for state in states]
        starts = self.query_start_loc.np[: count + 1]
        if any(steering.rows for steering in steerings):
            self._plan_with_rows(starts, num_logits, states, steerings)
        else:
            self.model.rows.plan = plan_step(starts, num_logits, steerings)
        if self.device.type == "cpu":
            self._make_generators_rewindable()
        return prepared

    def _plan_with_rows(self: Any, starts: Any, num_logits: Any, states: Any, steerings: Any) -> None:
        asked, scheduled = [steering.rows for steering in steerings], np.diff(starts)
        computed = self.input_batch.num_computed_tokens_cpu[: len(states)]
        num_rows = prompt_rows_of_step(asked, computed, scheduled)
        for state, wish in zip(states, asked, strict=True):
            if wish is not None and not hasattr(state, "tuco_pieces"):
                state.tuco_pieces = RowPieces()
        rows = self.model.rows
        rows.plan = plan_step(starts, num_logits, steerings, num_rows)
        rows.readings = readings_of_step(
            rows.plan,
            asked,
            [getattr(state, "tuco_pieces", None) for state in states],
            computed + scheduled,
            [state.num_prompt_tokens for state in states],
            num_logits,
        )

    def _make_generators_rewindable(self: Any) -> None:
        generators = self.input_batch.generators
        for place in [p for p in generators if self.discard_request_mask.np[p]]:
            if not isinstance(generators[place], _RewindableGenerator):
                generators[place] = _RewindableGenerator.like(generators[place])
                self.requests[self.input_batch.req_ids[place]].generator = generators[place]
            generators[place].keep()

    def _sample(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        output = super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        scores = self.model.take_scores()
        if scores is not None:
            if spec_decode_metadata is not None:
                scores = _by_slot(scores, spec_decode_metadata, output.sampled_token_ids.shape[1])
            output.logprobs_tensors = append_scores(output.logprobs_tensors, scores)
        return output


class _RewindableGenerator(torch.Generator):
    """A CPU generator that can take back what a row drew whose token is thrown away.

    vLLM samples for chunks that do not end their prompt, and undoes it by ``set_offset``, which only CUDA's
    generators have: on a CPU a seeded request with a prompt in several chunks would end the engine
    (``_bookkeeping_sync``, vllm/v1/worker/gpu_model_runner.py).
    """

    @classmethod
    def like(cls, generator: torch.Generator) -> "_RewindableGenerator":
        own = cls()
        own.set_state(generator.get_state())
        return own

    def keep(self) -> None:
        """Remember the state before the row is sampled."""
        self._kept = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        self.set_state(self._kept)
        return self


def _by_slot(scores: Tensor, drafts: Any, width: int) -> Tensor:
    """Rows of logits -> rows of ``sampled_token_ids`` flattened: every request padded to ``width`` slots, as
    vLLM's rejection sampler lays out logprobs. Slots without a row get any row; they are filtered."""
    counts = np.array(drafts.num_draft_tokens) + 1
    first = np.cumsum(counts) - counts
    slots = (first[:, None] + np.arange(width)[None, :]).reshape(-1)
    return scores[np.minimum(slots, len(scores) - 1)]


class SteeringWorker(PlatformWorker):
    """vLLM's worker of this platform, with our runner."""

    def init_device(self) -> None:
        """As stock; then the runner, if it is a V1 one (V2 has a way of its own, ``steering_v2``)."""
        super().init_device()
        stock = type(self.model_runner)
        if issubclass(stock, GPUModelRunnerV1):
            self.model_runner.__class__ = type(f"Steering{stock.__name__}", (_SteeringRunner, stock), {})
