"""What ``tuco doctor --gpu-memory`` counts, beside what an engine allocates, byte for byte.

Weights are counted behind the loader, before a CPU's kernels pack them: that is what a GPU holds. Keys and
values are counted by vLLM's own specification of the cache.
"""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from tuco_vllm import TucoLLM
from tuco_vllm.config import resolve_pair
from tuco_vllm.doctor.memory import footprint
from tuco_vllm.engine import adapter_runner
from tuco_vllm.engine.adapter_pair import TucoAdaptersForCausalLM
from tuco_vllm.engine.pair_model import TucoForCausalLM
from tuco_vllm.engine.worker import PairWorker

pytestmark = pytest.mark.usefixtures("in_process")

ENGINE: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": tiny_models.MAX_LEN,
    "kv_cache_memory_bytes": 64 << 20,
}


class Allocated:
    """Bytes of the engine that starts next in this process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.weights = self.adapters = self.per_token = 0
        spec, mend = PairWorker.get_kv_cache_spec, adapter_runner.mend_on_cpu

        def specified(worker: Any) -> Any:
            found = spec(worker)
            self.per_token = sum(each.page_size_bytes // each.block_size for each in found.values())
            return found

        def mended(model: Any) -> None:
            stacks = [vars(module).get(name) for module in model.modules() for name in STACKS]
            self.adapters = stored(tensor for stack in stacks for tensor in tensors_of(stack))
            mend(model)

        for model in (TucoForCausalLM, TucoAdaptersForCausalLM):
            patch.setattr(model, "load_weights", self._counting(model.load_weights))
        patch.setattr(PairWorker, "get_kv_cache_spec", specified)
        patch.setattr(adapter_runner, "mend_on_cpu", mended)  # which adds slots that a GPU does not have

    def _counting(self, load_weights: Any) -> Any:
        def loaded(model: Any, weights: Any) -> Any:
            filled = load_weights(model, weights)
            self.weights = stored(model.parameters())
            return filled

        return loaded


STACKS = ("lora_a_stacked", "lora_b_stacked")


def tensors_of(stack: Any) -> list[torch.Tensor]:
    return [stack] if isinstance(stack, torch.Tensor) else list(stack or ())


def stored(tensors: Any) -> int:
    """Bytes of storage; what two tensors share counts once."""
    seen = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def expect_counted(pt: str | None, ft: str, task: str, patch: pytest.MonkeyPatch) -> None:
    found, counted = Allocated(patch), footprint(resolve_pair(pt, ft))
    with TucoLLM(pt, ft, task=task, **ENGINE):
        pass
    generates = task == "generate"
    room = counted.adapter + generates * counted.adapter_head
    assert found.weights == counted.weights(generates) - room
    assert found.adapters == room
    assert found.per_token == counted.per_token


@pytest.mark.parametrize("task", ["score", "generate"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_pair_takes_what_was_counted(name: str, task: str, pair_dirs, monkeypatch) -> None:
    expect_counted(*pair_dirs(name, "float32"), task, monkeypatch)


def test_vocabularies_are_padded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tiny_models, "FT_VOCAB", 499)
    pair = tiny_models.make_pair("llama", tmp_path, torch.bfloat16)
    expect_counted(*pair, "generate", monkeypatch)


@pytest.mark.parametrize("task", ["score", "generate"])
def test_an_adapters_base_is_counted_once(task: str, pair_dirs, adapter_of, monkeypatch) -> None:
    _, base = pair_dirs("llama", "bfloat16")
    made = adapter_of(base, 41, r=9)
    expect_counted(None, made.adapter, task, monkeypatch)
