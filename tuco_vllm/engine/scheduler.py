"""vLLM's scheduler with two things added: the prefix cache's salt, and the scores' way out.

A salt for every request (``Steering.cache_salt``): keys and values depend on alpha, and blocks of a plain
request have no PT half. And the score columns of a step's logprobs become a field of each request's output.
That field is ``routed_experts``: an array per token that vLLM carries to the caller's completion, cut where a
stop string cuts the tokens, whole under preemption, n > 1 and speculation. Its own use, mixture-of-experts
models that return routes, is refused at start-up (``pair_config``).
"""

import logging
from typing import Any

from tuco_vllm.engine.compat import AsyncScheduler, Request, RequestError, Scheduler, VllmConfig
from tuco_vllm.engine.own_steps import TakesTurns
from tuco_vllm.engine.prefix_scheduler import end_prefixes
from tuco_vllm.engine.score_columns import rows_of_request, split_scores
from tuco_vllm.errors import InputError
from tuco_vllm.steering import (
    ALPHA,
    FT_STREAM,
    MAX_ALPHA,
    MIN_ALPHA,
    PLAIN,
    ROWS,
    TUCO,
    Asked,
    Limits,
    steering_of,
)

_log = logging.getLogger(__name__)


class _Steering(TakesTurns):
    """Mixed into vLLM's schedulers, whichever runs."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hf_config = kwargs["vllm_config"].model_config.hf_config
        self.num_layers: int = kwargs["vllm_config"].model_config.hf_text_config.num_hidden_layers
        self.has_adapters = kwargs["vllm_config"].lora_config is not None
        self.limits = Limits(
            float(getattr(hf_config, "tuco_min_alpha", MIN_ALPHA)),
            float(getattr(hf_config, "tuco_max_alpha", MAX_ALPHA)),
            self.num_layers,
        )
        end_prefixes(self.kv_cache_manager, lambda request: request.tuco_steering.rows)

    def add_request(self: Any, request: Request) -> None:
        session = self.requests.get(request.request_id)  # where input streams, each piece is such a request
        try:
            steering = steering_of(request.sampling_params.extra_args, self.limits)
            if steering.rows is not None:
                expect_rows_fit(request, steering.rows, self.has_adapters)
            if session is not None and request.resumable and steering != session.tuco_steering:
                raise InputError(
                    f"{ALPHA} and {TUCO} cannot change while input streams: its cache has one salt"
                )
        except InputError as error:
            # Every interface of ours has refused it before, and an exception here would end the engine. So it
            # runs for a step, plain or as it ran before, and ends with the step's errors.
            _log.error("request %s ends with an error: %s", request.request_id, error)
            steering = PLAIN
            request.sampling_params.extra_args = session and session.sampling_params.extra_args
            self._end_with_the_step(request.request_id, error)
        if session is None:
            request.tuco_steering = steering  # parsed once, it goes where the request goes
            request.cache_salt = steering.cache_salt(request.cache_salt)
            request.block_hashes.clear()
            request.update_block_hashes()
            self.to_stream(request, FT_STREAM if steering.rows is None else steering.rows.stream)
        super().add_request(request)  # type: ignore[misc]

    def _end_with_the_step(self: Any, name: str, error: InputError) -> None:
        errors = self.grammar_compile_error_reqs
        if isinstance(errors, dict):  # from vLLM 0.33 on they have words, which the client gets
            errors[name] = RequestError(code="validation_error", message=str(error))
        else:
            errors.add(name)

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        columns = model_runner_output.logprobs
        model_runner_output.logprobs, scores = split_scores(columns)
        scored = {
            name: (model_runner_output.req_id_to_index[name], request.tuco_steering.rows is not None)
            for name in (scheduler_output.num_scheduled_tokens if scores is not None else ())
            if (request := self.requests.get(name)) is not None and request.tuco_steering.scored
        }
        by_client = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        if scores is not None and scored:
            for outputs in by_client.values():
                for output in outputs.outputs:
                    if output.request_id in scored and output.new_token_ids:
                        place, of_prompt = scored[output.request_id]
                        output.routed_experts = rows_of_request(
                            columns, scores, place, len(output.new_token_ids), self.num_layers, of_prompt
                        )
        return by_client


def expect_rows_fit(request: Request, rows: Asked, has_adapters: bool = False) -> None:
    """Rows of a prompt leave with the one token that is sampled for it. InputError else, and for a stream of
    PT's own in an engine of adapters, where that is the base without one."""
    if has_adapters and rows.stream != FT_STREAM:
        raise InputError(f"{ROWS} is of the stream {rows.stream}, the engine has {FT_STREAM} only")
    if rows.last >= request.num_prompt_tokens:
        raise InputError(f"{ROWS} is of token {rows.last}, the prompt has {request.num_prompt_tokens}")
    if request.sampling_params.max_tokens != 1:
        raise InputError(f"{ROWS} is for requests with max_tokens=1")


class SteeringScheduler(_Steering, Scheduler):
    """With vLLM's synchronous scheduler."""


class SteeringAsyncScheduler(_Steering, AsyncScheduler):
    """With vLLM's asynchronous scheduler."""


def steering_scheduler(*, vllm_config: VllmConfig, **kwargs: Any) -> Any:
    """The scheduler of an engine; vLLM calls it in place of a class, and has by now decided on async."""
    scheduler = SteeringAsyncScheduler if vllm_config.scheduler_config.async_scheduling else SteeringScheduler
    return scheduler(vllm_config=vllm_config, **kwargs)
