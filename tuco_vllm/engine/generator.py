"""Token ids and wishes in, completions with scores out: the vLLM engine of a pair, generating."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from vllm import LLM, CompletionOutput, RequestOutput, SamplingParams

from tuco_vllm.adapter import Adapter
from tuco_vllm.config import ModelPair
from tuco_vllm.engine.adapter_requests import AdapterRequests, routed
from tuco_vllm.engine.arguments import alpha_bounds, pair_arguments
from tuco_vllm.engine.compat import EngineDeadError, tokens_input
from tuco_vllm.engine.death_watch import end_before_python, hear_of_death
from tuco_vllm.engine.row_pieces import received, score_wish
from tuco_vllm.engine.score_feed import tuco_of_rows
from tuco_vllm.engine.scorer import deaths, expect_heads
from tuco_vllm.errors import EngineError
from tuco_vllm.score_requests import Adapted, EngineInput, ScoredTokens
from tuco_vllm.steering import Limits, Steering

__all__ = [
    "Generator",
    "RequestOutput",
    "SamplingParams",
    "attach_scores",
    "logps_of",
    "next_token",
    "with_steering",
]

Key = TypeVar("Key")

_STREAM_BATCH = 1024
"""Prompts that ``stream`` hands to vLLM at once."""


class Generator:
    """One vLLM engine that generates under any alpha. Arguments and errors are ``scorer.Scorer``'s."""

    def __init__(self, pair: ModelPair, *, limits: Limits, **engine_args: Any) -> None:
        arguments = pair_arguments(pair, "generate", engine_args, **alpha_bounds(limits))
        try:
            self.llm = LLM.from_engine_args(arguments)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EngineError(f"the vLLM engine did not start: {reason[:500]}") from error
        hear_of_death(self.llm.llm_engine)
        end_before_python(self.llm.llm_engine)
        model_config = self.llm.llm_engine.model_config
        self.max_model_len: int = model_config.max_model_len
        self.num_layers: int = model_config.hf_text_config.num_hidden_layers
        self.dtype = self.row_dtype = str(model_config.dtype).removeprefix("torch.")
        self._has_heads = False
        self._adapter = pair.ft.adapter
        config: Any = self.llm.llm_engine.vllm_config
        self._adapters = AdapterRequests(config.lora_config, speculates=config.speculative_config is not None)

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams | None],
        steerings: Sequence[Steering],
        *,
        adapters: Sequence[Adapter | None] | None = None,
        progress: bool,
    ) -> list[RequestOutput]:
        """Complete each prompt's token ids; every completion gets ``tuco`` and ``tuco_norms``
        (``attach_scores``). ``adapters`` are whose FT is not the pair's own; None is the base."""
        wishes = [
            with_steering(one or SamplingParams(), steering)
            for one, steering in zip(params, steerings, strict=True)
        ]
        if adapters is None:
            adapters = [self._adapter] * len(prompts)
        loras: Any = [self._adapters.of(adapter) for adapter in adapters]
        try:
            outputs = self.llm.generate(
                [tokens_input(ids) for ids in prompts], wishes, use_tqdm=progress, lora_request=loras
            )
        except EngineDeadError as error:
            raise EngineError(f"the vLLM engine died: {error}") from error
        for output, steering in zip(outputs, steerings, strict=True):
            for completion in output.outputs if steering.rows is None else ():
                attach_scores(completion)
        return outputs

    def stream(self, items: Iterable[tuple[Key, EngineInput | Adapted]]) -> Iterator[tuple[Key, Any]]:
        """Of each prompt's token ids its norms ``[L, 7]``, of ScoredTokens RowScores; in input order."""
        params = SamplingParams(max_tokens=1, detokenize=False)
        source = iter(items)
        while batch := list(islice(source, _STREAM_BATCH)):
            routes = [routed(asked, self._adapter) for _, asked in batch]
            wishes, ids = zip(*(score_wish(asked) for asked, _ in routes), strict=True)
            if not self._has_heads and any(wish.rows and wish.rows.targets for wish in wishes):
                with deaths():
                    expect_heads(self.llm.collective_rpc("load_heads"))
                self._has_heads = True
            adapters = [adapter for _, adapter in routes]
            outputs = self.generate(ids, [params] * len(ids), wishes, adapters=adapters, progress=False)
            for (key, _), (asked, _), output in zip(batch, routes, outputs, strict=True):
                completion = output.outputs[0]
                rows = completion.routed_experts if isinstance(asked, ScoredTokens) else completion.tuco_norms
                yield key, received(rows, asked, self.num_layers)

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        llm, self.llm = getattr(self, "llm", None), None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()


def with_steering(params: SamplingParams, steering: Steering) -> SamplingParams:
    """A copy of ``params`` that asks for ``steering``."""
    copy = params.clone()
    copy.extra_args = {**(copy.extra_args or {}), **steering.extra_args()}
    return copy


def next_token(candidates: Sequence[int]) -> SamplingParams:
    """Params of a request for log p of these tokens, 128 at most, as the next one: over the whole vocabulary
    and before any temperature. vLLM fills up rows of a batch with fewer; it drops the filling itself."""
    return SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=[*candidates])


def logps_of(output: RequestOutput, candidates: Sequence[int]) -> list[float]:
    """What a request with ``next_token``'s params was told, in their order."""
    [told] = output.outputs[0].logprobs or [{}]
    return [float(told[token].logprob) for token in candidates]


def attach_scores(completion: CompletionOutput) -> None:
    """Give a finished completion of n tokens its scores by their names.

    ``tuco``: a list of n floats, entry i the TuCo at the row that token i was sampled from, so entry 0 is the
    prompt's. ``tuco_norms``: float32 ``[n, L, 7]`` in ``decomposition.NORM_COLUMNS``' order. Both are None
    where no scores were asked for.
    """
    norms: NDArray[np.float32] | None = completion.routed_experts
    completion.routed_experts = None
    completion.tuco_norms = norms
    completion.tuco = None if norms is None else tuco_of_rows(norms)
