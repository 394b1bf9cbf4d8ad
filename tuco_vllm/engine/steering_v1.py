"""Model Runner V1 (CPUs, and GPUs by choice): prepare each step, append the scores to what was sampled.

Two overrides (``worker`` puts them into the stock runner), and to each request's state what it asks for.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuco_vllm.engine.row_pieces import RowPieces
from tuco_vllm.engine.score_columns import append_scores
from tuco_vllm.steering import ANY_NUMBER, steering_of


class SteeringRunner:
    """Mixed into a V1 runner."""

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        drafts = prepared[1]
        count = self.input_batch.num_reqs
        num_logits = np.ones(count, dtype=np.int32)
        if drafts is not None:
            num_logits += np.array(drafts.num_draft_tokens, dtype=np.int32)
        for new in scheduler_output.scheduled_new_reqs:
            # Parsed once, it stays through preemption and goes with the request's own state. The limits
            # are the front's business; here a number is a number.
            steering = steering_of(new.sampling_params.extra_args, ANY_NUMBER)
            self.requests[new.req_id].tuco_steering = steering
            if steering.rows is not None:
                self.requests[new.req_id].tuco_pieces = RowPieces()
        states = [self.requests[name] for name in self.input_batch.req_ids[:count]]
        self.model.rows.prepare(
            self.query_start_loc.np[: count + 1],
            num_logits,
            [state.tuco_steering for state in states],
            self.input_batch.num_computed_tokens_cpu[:count],
            [(getattr(state, "tuco_pieces", None), state.num_prompt_tokens) for state in states],
        )
        self.model.rows_known(count)
        if self.device.type == "cpu":
            self._make_generators_rewindable()
        return prepared

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
