"""Model Runner V2 (the default on GPUs): the same two additions through its ModelState.

The model class names it (``get_model_state_cls``). Wishes are kept by request name, not by slot, so that
vLLM's dummy batches, whose names nobody asked for, are plain.
"""

from typing import Any

import numpy as np

from tuco_vllm.engine.compat import DefaultModelState, GPURejectionSampler
from tuco_vllm.engine.row_pieces import RowPieces
from tuco_vllm.engine.score_columns import append_scores
from tuco_vllm.steering import ANY_NUMBER, PLAIN, Steering, steering_of


class SteeringModelState(DefaultModelState):
    """Prepares each step before its attention metadata is built; wraps the samplers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steerings: dict[str, Steering] = {}
        self._pieces: dict[str, tuple[RowPieces, int]] = {}
        """Of requests that ask for rows of their prompts: what has come, and how many tokens those have."""

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Remember what a new, or resumed, request asks for."""
        super().add_request(req_index, new_req_data)
        steering = steering_of(new_req_data.sampling_params.extra_args, ANY_NUMBER)
        if steering.needs_pt:
            self.steerings[new_req_data.req_id] = steering
        if steering.rows is not None:
            self._pieces[new_req_data.req_id] = RowPieces(), len(new_req_data.prompt_token_ids)

    def remove_request(self, req_id: str) -> None:
        """Forget it."""
        super().remove_request(req_id)
        self.steerings.pop(req_id, None)
        self._pieces.pop(req_id, None)

    def prepare_attn(self, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Attention metadata, of PT's layers by this step's plan."""
        count = input_batch.num_reqs
        self.model.rows.prepare(
            input_batch.query_start_loc_np[: count + 1],
            np.diff(input_batch.cu_num_logits_np[: count + 1]),
            [self.steerings.get(name, PLAIN) for name in input_batch.req_ids],
            input_batch.num_computed_tokens_np[:count],
            [self._pieces.get(name, (None, 0)) for name in input_batch.req_ids],
        )
        self.model.rows_known(count)
        return super().prepare_attn(input_batch, *args, **kwargs)

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        """The stock samplers, each followed by the scores."""
        speculative = self.vllm_config.speculative_config
        rejection = None
        if speculative is not None:
            rejection = _ScoringSampler(GPURejectionSampler(sampler, speculative, self.device), self.model)
        return _ScoringSampler(sampler, self.model), rejection


class _ScoringSampler:
    """A stock sampler in all but the call."""

    def __init__(self, sampler: Any, model: Any) -> None:
        self._sampler, self._model = sampler, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __call__(self, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        output = self._sampler(logits, input_batch, *args, **kwargs)
        scores = self._model.take_scores()
        if scores is not None:
            starts = input_batch.cu_num_logits_np
            expanded = len(scores) != input_batch.num_reqs
            output.logprobs_tensors = append_scores(
                output.logprobs_tensors, scores, starts.tolist() if expanded else None
            )
        return output
