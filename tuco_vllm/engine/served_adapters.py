"""A server's adapters: vLLM's flags for those it starts with, and what a scored request asks for by a name.

vLLM selects an adapter by the request's ``model``. The pair's own stands first under FT's name, beside those
of ``--lora-modules``; the base's own name is PT itself.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuco_vllm.adapter import Adapter, read_adapter
from tuco_vllm.config import ModelPair, expect_tokenizer, resolve_adapter
from tuco_vllm.engine import compat
from tuco_vllm.engine.adapter_requests import expect_no_head, room_for
from tuco_vllm.errors import InputError

_LOADED_LATER = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING",)
"""By which vLLM would take adapters that nobody has checked."""

_MOST_AT_ONCE = 8
"""Adapters in one batch where ``--max-loras`` says nothing: each takes a slot's memory."""


def add_adapters(arguments: Namespace, pair: ModelPair, base_names: list[str]) -> None:
    """Let vLLM's ``arguments`` serve the pair's adapter and those of ``--lora-modules``, all checked.

    Raises InputError for an adapter that does not fit the base, or a name that is taken.
    """
    own = pair.ft.adapter
    assert own is not None
    base_names = arguments.served_model_name or base_names
    for name in _LOADED_LATER:
        if os.environ.get(name, "0") not in ("", "0"):
            raise InputError(f"{name} is set: adapters are checked when a server starts; use --lora-modules")
    if pair.ft.name in base_names:
        raise InputError(f"base and adapter are both called {pair.ft.name}: give --served-model-name NAME")
    adapters = {pair.ft.name: own}
    for module in arguments.lora_modules or []:
        if module.name in (*adapters, *base_names):
            raise InputError(f"--lora-modules: {module.name} is taken, give the adapter another name")
        adapters[module.name] = resolve_adapter(module.path, pair.pt)[0]
        expect_tokenizer(adapters[module.name], pair.ft)
    places = {name: str(adapter.directory) for name, adapter in adapters.items()}
    arguments.enable_lora = True
    arguments.lora_modules = [compat.LoRAModulePath(name, path) for name, path in places.items()]
    arguments.max_lora_rank = max(arguments.max_lora_rank, *map(room_for, adapters.values()))
    if arguments.max_loras == 1:  # vLLM's default
        arguments.max_loras = min(len(adapters), _MOST_AT_ONCE)
    # All stay in memory: one that is read again may be another by then, under the name of the old.
    arguments.max_cpu_loras = max(len(adapters), arguments.max_loras)
    if arguments.speculative_config is not None:
        for adapter in adapters.values():
            expect_no_head(adapter)
    arguments.served_model_name = base_names


class ServedAdapters:
    """What requests may call a model, beside the names of the pair: vLLM's own list."""

    def __init__(self, requests: Mapping[str, Any]) -> None:
        self._requests = requests

    def __contains__(self, name: object) -> bool:
        return name in self._requests

    def request(self, name: str) -> Any:
        """What vLLM is told of it; None for the base."""
        return self._requests.get(name)

    def adapter(self, name: str) -> Adapter | None:
        """Its files, read; InputError for one that is no plain LoRA."""
        request = self._requests.get(name)
        return None if request is None else _read(name, request.lora_path)


_read = lru_cache(maxsize=64)(lambda name, path: read_adapter(name, Path(path)))
