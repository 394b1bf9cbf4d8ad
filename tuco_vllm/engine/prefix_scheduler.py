"""vLLM's scheduler in an engine that scores: a cached prefix ends before the first row that is read.

A row can be read only in the step that computes it, and vLLM would take all blocks of a response that was
scored before from the cache. So the answers to one prompt share the prompt, and a response's own blocks are
stored like any others, for who comes after it.
"""

from collections.abc import Callable
from typing import Any

from tuco_vllm.engine.compat import AsyncScheduler, Request, Scheduler, VllmConfig
from tuco_vllm.engine.own_steps import TakesTurns
from tuco_vllm.engine.scoring_rows import rows_asked
from tuco_vllm.steering import FT_STREAM, Asked


class _Shorter:
    """A request that ends with its token at ``last``, to whoever looks for its cached prefix."""

    def __init__(self, request: Request, last: int) -> None:
        self._request, self.num_tokens = request, last + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def end_prefixes(manager: Any, asked_by: Callable[[Any], Asked | None]) -> None:
    """Have a KVCacheManager look for prefixes that end before the first row that a request asks for."""
    stock = manager.get_computed_blocks

    def before_the_first_row(request: Request) -> Any:
        asked = asked_by(request)
        # vLLM computes a request's last token anew, whatever is cached.
        return stock(request if asked is None else _Shorter(request, asked.first))

    manager.get_computed_blocks = before_the_first_row


class _Scoring(TakesTurns):
    """Mixed into vLLM's schedulers, whichever runs."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        end_prefixes(self.kv_cache_manager, lambda request: rows_asked(request.pooling_params))

    def add_request(self: Any, request: Request) -> None:
        asked = rows_asked(request.pooling_params)
        self.to_stream(request, FT_STREAM if asked is None else asked.stream)
        super().add_request(request)  # type: ignore[misc]


class ScoringScheduler(_Scoring, Scheduler):
    """With vLLM's synchronous scheduler."""


class ScoringAsyncScheduler(_Scoring, AsyncScheduler):
    """With vLLM's asynchronous scheduler."""


def scoring_scheduler(*, vllm_config: VllmConfig, **kwargs: Any) -> Any:
    """The scheduler of an engine; vLLM calls it in place of a class, and has by now decided on async."""
    scheduler = ScoringAsyncScheduler if vllm_config.scheduler_config.async_scheduling else ScoringScheduler
    return scheduler(vllm_config=vllm_config, **kwargs)
