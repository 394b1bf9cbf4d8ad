"""Token ids in, norms out: the vLLM engine of a pair, kept saturated while it is read lazily."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import vllm
from torch import Tensor
from vllm import LLMEngine, PoolingParams

from tuco_vllm.config import ModelPair, expect_row_dtype
from tuco_vllm.engine.adapter_requests import AdapterRequests, routed
from tuco_vllm.engine.arguments import eager_or_compiled, pair_arguments
from tuco_vllm.engine.compat import EngineDeadError, tokens_input
from tuco_vllm.engine.death_watch import end_before_python, hear_of_death
from tuco_vllm.engine.pair_config import rows_are_wide
from tuco_vllm.engine.row_pieces import row_scores
from tuco_vllm.engine.start_stages import explain
from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.families import FAMILIES
from tuco_vllm.score_requests import Adapted, EngineInput, RowScores, ScoredTokens
from tuco_vllm.steering import ROWS

Key = TypeVar("Key")

VLLM_VERSION: str = vllm.__version__

MOST_AHEAD = 2048
"""Prompts that ``Scorer.stream`` takes ahead at most: two of the largest steps that are a default. More would
only be held in memory, of two processes."""


class Scorer:
    """One vLLM engine (one or more processes) that scores token ids.

    Args:
        pair: the checked models.
        row_dtype: what scores are computed in beside the model's own dtype, one of ``config.ROW_DTYPES``.
        expected_tokens: about how many will be scored, if that is known: few are not worth compiling for.
        engine_args: vLLM ``EngineArgs`` fields, as users know them (``max_model_len``, ``dtype``, ...).

    Raises InputError for arguments that scoring fixes itself, EngineError when vLLM does not start.
    """

    def __init__(
        self,
        pair: ModelPair,
        *,
        row_dtype: str = "auto",
        expected_tokens: int | None = None,
        **engine_args: Any,
    ) -> None:
        expect_row_dtype(pair, row_dtype)
        engine_args, choice = eager_or_compiled(pair, engine_args, expected_tokens)
        if choice:
            explain(choice)
        engine_args = {"skip_tokenizer_init": True, **engine_args}
        arguments = pair_arguments(pair, "pooling", engine_args, tuco_row_dtype=row_dtype)
        try:
            self.engine = LLMEngine.from_engine_args(arguments)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EngineError(f"the vLLM engine did not start: {reason[:500]}") from error
        hear_of_death(self.engine)
        end_before_python(self.engine)
        model_config = self.engine.model_config
        self.max_model_len: int = model_config.max_model_len
        self.num_layers: int = model_config.hf_text_config.num_hidden_layers
        self.vllm_version = VLLM_VERSION
        self.dtype = str(model_config.dtype).removeprefix("torch.")
        wide = rows_are_wide(self.engine.vllm_config, FAMILIES[pair.ft.architecture])
        self.row_dtype = "float32" if wide else self.dtype
        self.max_num_seqs: int = self.engine.vllm_config.scheduler_config.max_num_seqs
        self._adapter = pair.ft.adapter
        self._adapters = AdapterRequests(self.engine.vllm_config.lora_config)
        self._params = PoolingParams(task="classify")
        self._next_id = 0
        self._done: dict[str, Any] = {}  # of all streams: a step of one may finish prompts of another
        self._asked: dict[str, ScoredTokens] = {}
        self._has_heads = False

    def stream(self, items: Iterable[tuple[Key, EngineInput | Adapted]]) -> Iterator[tuple[Key, Any]]:
        """Of each prompt's token ids its norms ``[L, 7]`` float32, of ScoredTokens RowScores; in input order.

        Pulls lazily: at most ``4 * max_num_seqs`` items, and MOST_AHEAD, are taken from ``items`` and not yet
        yielded, enough that the engine does not wait and that a long prompt ahead does not stall it.
        """
        source = iter(items)
        waiting: deque[tuple[str, Key]] = deque()  # taken, not yet yielded, in input order
        done = self._done
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) < min(4 * self.max_num_seqs, MOST_AHEAD):
                    item = next(source, None)
                    if item is None:
                        exhausted = True
                    else:
                        waiting.append((self.submit(item[1]), item[0]))
                while waiting and waiting[0][0] in done:
                    request, key = waiting.popleft()
                    yield key, done.pop(request)
                if not waiting:
                    if exhausted:
                        return
                    continue
                done.update(self.step())
        finally:
            self._abort([request for request, _ in waiting if done.pop(request, None) is None])

    def submit(self, asked: EngineInput | Adapted) -> str:
        """Put a prompt into the engine's queue. Returns the request's name; raises EngineError."""
        request = str(self._next_id)
        self._next_id += 1
        asked, adapter = routed(asked, self._adapter)
        lora, token_ids, params = self._adapters.of(adapter), asked, self._params
        if isinstance(asked, ScoredTokens):
            rows = {ROWS: list(asked.asked)}
            token_ids, params = asked.token_ids, PoolingParams(task="classify", extra_kwargs=rows)
            if asked.asked.targets:
                self._load_heads()
            self._asked[request] = asked
        with deaths():
            self.engine.add_request(request, tokens_input(token_ids), params, lora_request=lora)
        return request

    def _load_heads(self) -> None:
        if not self._has_heads:
            with deaths():
                expect_heads(self.engine.collective_rpc("load_heads"))
            self._has_heads = True

    def step(self) -> list[tuple[str, Any]]:
        """Let the engine work. Returns finished requests' names, and what ``stream`` says of each; raises
        EngineError."""
        with deaths():
            outputs: list[Any] = self.engine.step()
        return [
            (output.request_id, self._of(output.request_id, output.outputs.data))
            for output in outputs
            if output.finished
        ]

    def _of(self, request: str, data: Tensor) -> Tensor | RowScores:
        asked = self._asked.pop(request, None)
        return data if asked is None else row_scores(data, asked, self.num_layers)

    def _abort(self, requests: list[str]) -> None:
        for request in requests:
            self._asked.pop(request, None)
        if requests:
            try:
                self.engine.abort_request(requests)
            except Exception:  # a dead engine has nothing left to abort
                return

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        engine, self.engine = getattr(self, "engine", None), None
        if engine is not None:
            engine.engine_core.shutdown()


def expect_heads(answers: Sequence[str | None]) -> None:
    """What an engine's workers answer to "load_heads"; InputError where one of them could not, for the engine
    lives."""
    for wrong in filter(None, answers):
        raise InputError(f"what the relative reward needs of both models cannot be loaded: {wrong[:500]}")


@contextmanager
def deaths() -> Iterator[None]:
    """A dead engine, in words."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineError(f"the vLLM engine died: {error}; rows already written are kept") from error
