"""Model Runner V1 (CPUs, and GPUs by choice) in an engine that scores: what a step reads."""

from typing import Any

from tuco_vllm.engine.scoring_rows import reads_of_step, rows_asked


class ScoringRunner:
    """Mixed into a V1 runner."""

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        names = self.input_batch.req_ids[: len(num_scheduled_tokens)]
        self.model.rows.reads = reads_of_step(
            [rows_asked(self.requests[name].pooling_params) for name in names],
            self.input_batch.num_computed_tokens_cpu[: len(names)],
            num_scheduled_tokens,
        )
        self.model.rows_known(len(names))
        return prepared
