"""Model Runner V2 (the default on GPUs) in an engine that scores: what a step reads."""

from typing import Any

from tuco_vllm.engine.compat import DefaultModelState
from tuco_vllm.engine.scoring_rows import reads_of_step, rows_asked
from tuco_vllm.steering import Asked


class ScoringModelState(DefaultModelState):
    """Tells what a step reads before its attention metadata is built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked: dict[str, Asked] = {}
        self.model.pooler.fetch = True

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Remember what a new, or resumed, request asks for."""
        super().add_request(req_index, new_req_data)
        asked = rows_asked(new_req_data.pooling_params)
        if asked is not None:
            self._asked[new_req_data.req_id] = asked

    def remove_request(self, req_id: str) -> None:
        """Forget it."""
        super().remove_request(req_id)
        self._asked.pop(req_id, None)

    def prepare_attn(self, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Attention metadata, of layers on rows by this step's."""
        count = input_batch.num_reqs
        self.model.rows.reads = reads_of_step(
            [self._asked.get(name) for name in input_batch.req_ids],
            input_batch.num_computed_tokens_np[:count],
            input_batch.num_scheduled_tokens[:count],
        )
        self.model.rows_known(count)
        return super().prepare_attn(input_batch, *args, **kwargs)
