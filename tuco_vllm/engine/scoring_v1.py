"""Model Runner V1 (CPUs, and GPUs by choice) in an engine that scores: how many rows a step reads."""

from typing import Any

from tuco_vllm.engine.compat import GPUModelRunnerV1, PlatformWorker
from tuco_vllm.engine.scoring_rows import rows_asked, rows_of_step


class _ScoringRunner:
    """Mixed into a V1 runner."""

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        names = self.input_batch.req_ids[: len(num_scheduled_tokens)]
        self.model.rows.counts = rows_of_step(
            [rows_asked(self.requests[name].pooling_params) for name in names],
            self.input_batch.num_computed_tokens_cpu[: len(names)],
            num_scheduled_tokens,
        )
        return prepared


class ScoringWorker(PlatformWorker):
    """vLLM's worker of this platform, with our runner."""

    def init_device(self) -> None:
        """As stock; then the runner, if it is a V1 one (V2 has a way of its own, ``scoring_v2``)."""
        super().init_device()
        stock = type(self.model_runner)
        if issubclass(stock, GPUModelRunnerV1):
            self.model_runner.__class__ = type(f"Scoring{stock.__name__}", (_ScoringRunner, stock), {})
