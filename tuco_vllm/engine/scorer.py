"""Token ids in, norms out: the vLLM engine of a pair, kept saturated while it is read lazily."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import vllm
from torch import Tensor
from vllm import EngineArgs, LLMEngine, PoolingParams

from tuco_vllm.config import ModelPair
from tuco_vllm.engine.compat import EngineDeadError, current_platform, tokens_input
from tuco_vllm.engine.plugin import ARCHITECTURE
from tuco_vllm.errors import EngineError, InputError

Key = TypeVar("Key")

VLLM_VERSION: str = vllm.__version__

_REFUSED = ("model", "runner", "task", "convert", "hf_overrides", "quantization", "tokenizer")


class Scorer:
    """One vLLM engine (one or more processes) that scores token ids.

    Args:
        pair: the checked models.
        engine_args: vLLM ``EngineArgs`` fields, as users know them (``max_model_len``, ``dtype``, ...).

    Raises InputError for arguments that scoring fixes itself, EngineError when vLLM does not start.
    """

    def __init__(self, pair: ModelPair, **engine_args: Any) -> None:
        for name in _REFUSED:
            if name in engine_args:
                raise InputError(f"{name}= is set by tuco itself: leave it out")
        if engine_args.get("pipeline_parallel_size", 1) > 1:
            raise InputError("pipeline parallelism is not supported yet: use tensor_parallel_size")
        for name in engine_args:
            if name not in EngineArgs.__dataclass_fields__:
                raise InputError(f"vLLM has no engine argument {name}")
        arguments = EngineArgs(
            model=str(pair.ft.directory),
            runner="pooling",
            hf_overrides={"architectures": [ARCHITECTURE], "tuco_pt": str(pair.pt.directory)},
            config_format="hf",  # Mistral's repositories carry a second format of config and weights
            skip_tokenizer_init=True,
            **{"disable_log_stats": True, **engine_args},
        )
        if current_platform.is_cpu():
            _fit_to_cpu(arguments)
        try:
            self.engine = LLMEngine.from_engine_args(arguments)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EngineError(f"the vLLM engine did not start: {reason[:500]}") from error
        model_config = self.engine.model_config
        self.max_model_len: int = model_config.max_model_len
        self.num_layers: int = model_config.hf_config.num_hidden_layers
        self.dtype = str(model_config.dtype).removeprefix("torch.")
        self.max_num_seqs: int = self.engine.vllm_config.scheduler_config.max_num_seqs
        self._params = PoolingParams(task="classify")
        self._next_id = 0

    def stream(self, items: Iterable[tuple[Key, list[int]]]) -> Iterator[tuple[Key, Tensor]]:
        """Norms ``[L, 4]`` float32 of each prompt, in input order.

        Pulls lazily: at most ``4 * max_num_seqs`` items are taken from ``items`` and not yet yielded, enough
        that the engine never waits and that a long prompt ahead does not stall it.
        """
        source = iter(items)
        waiting: deque[tuple[str, Key]] = deque()  # taken, not yet yielded, in input order
        done: dict[str, Tensor] = {}
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) < 4 * self.max_num_seqs:
                    item = next(source, None)
                    if item is None:
                        exhausted = True
                    else:
                        waiting.append((self._submit(item[1]), item[0]))
                while waiting and waiting[0][0] in done:
                    request, key = waiting.popleft()
                    yield key, done.pop(request)
                if not waiting:
                    if exhausted:
                        return
                    continue
                for output in self._step():
                    done[output.request_id] = output.outputs.data
        finally:
            self._abort([request for request, _ in waiting if request not in done])

    def _submit(self, token_ids: list[int]) -> str:
        request = str(self._next_id)
        self._next_id += 1
        self.engine.add_request(request, tokens_input(token_ids), self._params)
        return request

    def _step(self) -> list[Any]:
        try:
            return [output for output in self.engine.step() if output.finished]
        except EngineDeadError as error:
            raise EngineError(f"the vLLM engine died: {error}; rows already written are kept") from error

    def _abort(self, requests: list[str]) -> None:
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


def _fit_to_cpu(arguments: EngineArgs) -> None:
    """vLLM's CPU defaults are a server's: nearly all memory for the KV cache, one NUMA node for each rank.

    Scoring needs the cache for prompts in flight only, so a quarter of the free memory is plenty. What the
    caller or the environment says stands. The core that vLLM keeps free for its other processes stays so:
    without it, on two cores, small models ran at less than half the speed.
    """
    ranks = arguments.tensor_parallel_size
    if ranks > 1:
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        shares = [",".join(cores[rank::ranks]) or cores[0] for rank in range(ranks)]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(shares))
    chosen = arguments.kv_cache_memory_bytes is not None or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if not chosen and arguments.gpu_memory_utilization == EngineArgs.gpu_memory_utilization:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        arguments.kv_cache_memory_bytes = max(free // 4, 1 << 30)
