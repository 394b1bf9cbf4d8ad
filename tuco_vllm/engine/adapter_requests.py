"""vLLM's names for adapters: what an engine is configured for, and what goes with each request."""

from dataclasses import replace
from typing import Any, get_args

from tuco_vllm.adapter import WEIGHTS, Adapter, read_adapter
from tuco_vllm.config import ModelPair
from tuco_vllm.engine.compat import LoRARequest, MaxLoRARanks
from tuco_vllm.errors import InputError
from tuco_vllm.score_requests import Adapted, EngineInput, ScoredTokens
from tuco_vllm.steering import FT_STREAM

_RANKS = sorted(get_args(MaxLoRARanks))


def adapter_arguments(pair: ModelPair) -> dict[str, Any]:
    """EngineArgs for a base and adapters of it, where the caller says nothing else: one adapter at a time, of
    the pair's rank. InputError for a rank that vLLM does not take."""
    adapter = pair.ft.adapter
    if adapter is None:
        return {}
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room_for(adapter)}


def room_for(adapter: Adapter) -> int:
    """The least ``max_lora_rank`` that an adapter fits."""
    for rank in _RANKS:
        if rank >= adapter.rank:
            return int(rank)
    raise InputError(f"the adapter {adapter.name} has rank {adapter.rank}, vLLM's limit is {_RANKS[-1]}")


def routed(asked: EngineInput | Adapted, own: Adapter | None) -> tuple[EngineInput, Adapter | None]:
    """What an engine is asked, and under which adapter; ``own`` is the pair's.

    In an engine of adapters PT on a stream of its own is the base without one.
    """
    if isinstance(asked, Adapted):
        return routed(asked.asked, asked.adapter)
    on_base = of_base(asked)
    return (asked, own) if own is None or on_base is None else (on_base, None)


def of_base(asked: EngineInput) -> ScoredTokens | None:
    """What of PT on a stream of its own an engine of adapters is asked: FT's, without an adapter. None where
    FT is asked."""
    if not isinstance(asked, ScoredTokens) or asked.asked.stream == FT_STREAM:
        return None
    return replace(asked, asked=asked.asked._replace(stream=FT_STREAM))


class AdapterRequests:
    """An engine's adapters. One is known by its content: another one under the same path is another."""

    def __init__(self, lora_config: Any, *, speculates: bool = False) -> None:
        self._max_rank: int = lora_config.max_lora_rank if lora_config else 0
        self._speculates = speculates
        self._known: dict[str, tuple[LoRARequest, tuple[int, int]]] = {}

    def of(self, adapter: Adapter | None) -> LoRARequest | None:
        """What vLLM is told with a request. InputError for an adapter that the engine has no room for."""
        if adapter is None:
            return None
        file = (adapter.directory / WEIGHTS).stat()
        known, state = self._known.get(adapter.fingerprint), (file.st_mtime_ns, file.st_size)
        if known is None:
            self._expect_room(adapter)
            request = LoRARequest(
                lora_name=f"{adapter.name}@{adapter.fingerprint[:16]}",
                lora_int_id=len(self._known) + 1,
                lora_path=str(adapter.directory),
            )
            known = self._known[adapter.fingerprint] = request, state
        if known[1] != state:  # vLLM would read it again under the old name, when it has put it aside
            if read_adapter(adapter.name, adapter.directory).fingerprint != adapter.fingerprint:
                raise InputError(f"the files of {adapter.name} have changed since it was read: give it anew")
            self._known[adapter.fingerprint] = known[0], state
        return known[0]

    def _expect_room(self, adapter: Adapter) -> None:
        if adapter.rank > self._max_rank:
            raise InputError(
                f"the adapter {adapter.name} has rank {adapter.rank}, the engine takes {self._max_rank}: "
                f"start it with max_lora_rank={room_for(adapter)}"
            )
        if self._speculates:
            expect_no_head(adapter)


def expect_no_head(adapter: Adapter) -> None:
    """InputError for an adapted head where drafts are: runner V2 maps its rows as if there were none."""
    if adapter.adapts("lm_head"):
        raise InputError(f"the adapter {adapter.name} changes the head: leave speculative decoding out")
