"""At alpha = 1 a pair's engine on a CUDA device is stock vLLM's of FT, with the same settings.

The same requests go to both, all queued before the first step, so both form the same batches. Plain requests
run the same code and graphs, and must come out equal to the last bit. Scored ones run in another compiled
graph, where sums are grouped differently: there tokens may part where stock itself sees a tie, and nowhere
else.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import steered
import tiny_models
import tolerances
import torch
from gpu import judge, modes
from gpu.modes import Mode
from vllm import LLM, SamplingParams

from tuco_vllm.steering import ALPHA, TUCO

pytestmark = pytest.mark.gpu

MODES = [
    Mode("FLASH_ATTN", "eager", "bfloat16", "llama"),
    Mode("FLASH_ATTN", "FULL_AND_PIECEWISE", "bfloat16", "qwen3"),
    Mode("TRITON_ATTN", "PIECEWISE", "float32", "mistral_windowed_ft", asynchronous=False),
    Mode("TRITON_ATTN", "eager", "bfloat16", "mistral", asynchronous=False),
]
SCORED = {ALPHA: 1, TUCO: True}
BATCH = 64


def complete(llm: LLM, prompts: Sequence[list[int]], wish: dict[str, Any] | None) -> list[Any]:
    """Greedy completions of one batch."""
    params = SamplingParams(max_tokens=12, temperature=0.0, logprobs=5, ignore_eos=True, extra_args=wish)
    llm.sleep(level=0)
    llm.enqueue([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    llm.wake_up(tags=["scheduling"])
    return [output.outputs[0] for output in llm.wait_for_completion(use_tqdm=False)]


class Both:
    """What stock vLLM said, and a pair's engine with the same settings."""

    def __init__(self, mode: Mode, pair: tuple[str, str]) -> None:
        self.mode = mode
        self.prompts = steered.prompts(BATCH, longest=100, seed=11)
        args = mode.engine_args(enable_prefix_caching=False)  # every round is a first one
        llm = LLM(pair[1], **args)
        try:
            [self.stock_runs_on] = llm.collective_rpc(modes.inspect)
            self.batch = complete(llm, self.prompts, None)
            self.alone = [complete(llm, [prompt], None)[0] for prompt in self.prompts[:8]]
        finally:
            llm.llm_engine.engine_core.shutdown()
        overrides = {"architectures": ["TucoForCausalLM"], "tuco_pt": pair[0]}
        self.llm = LLM(pair[1], runner="generate", hf_overrides=overrides, **args)

    def assert_same(self, ours: Sequence[Any], stock: Sequence[Any], *, exactly: bool) -> None:
        for place, (mine, theirs) in enumerate(zip(ours, stock, strict=True)):
            difference = judge.first_difference(mine, theirs)
            if exactly:
                assert difference is None, f"request {place}: {difference}"
                assert mine.cumulative_logprob == theirs.cumulative_logprob, f"request {place}"
            elif difference is not None:
                tie = tolerances.TIED_LOGPROBS[self.mode.dtype]
                assert difference[1] <= tie, f"request {place}: {difference}"


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, pair_dirs) -> Iterator[Both]:
    mode: Mode = request.param
    both = Both(mode, pair_dirs(mode.pair, mode.dtype))
    yield both
    both.llm.llm_engine.engine_core.shutdown()


def test_runs_what_was_asked_for(engine: Both) -> None:
    asynchronous = engine.mode.asynchronous is not False
    layers = tiny_models.SHAPE["num_hidden_layers"]
    modes.assert_runs_as(engine.mode, engine.llm.llm_engine, asynchronous=asynchronous, layers=layers)
    stock = engine.stock_runs_on
    if modes.has_gpu():
        assert stock["graphs"] == ("NONE" if engine.mode.eager else engine.mode.graphs)
        assert stock["backends"] == [engine.mode.backend]
        assert "vllm.v1.worker.gpu.model_runner" in stock["runner"]


def test_plain_requests_alone(engine: Both) -> None:
    ours = [complete(engine.llm, [prompt], None)[0] for prompt in engine.prompts[:8]]
    engine.assert_same(ours, engine.alone, exactly=True)
    assert all(completion.routed_experts is None for completion in ours)


def test_plain_requests_in_a_batch(engine: Both) -> None:
    ours = complete(engine.llm, engine.prompts, None)
    engine.assert_same(ours, engine.batch, exactly=True)


def test_scored_requests(engine: Both) -> None:
    """FT's layers see what stock's see. Only a compiler may fuse them with PT's, and so round elsewhere."""
    alone = [complete(engine.llm, [prompt], SCORED)[0] for prompt in engine.prompts[:8]]
    batch = complete(engine.llm, engine.prompts, SCORED)
    engine.assert_same(alone, engine.alone, exactly=engine.mode.eager)
    engine.assert_same(batch, engine.batch, exactly=engine.mode.eager)
    layers = tiny_models.SHAPE["num_hidden_layers"]
    assert all(c.routed_experts.shape == (len(c.token_ids), layers, 7) for c in batch)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.eager], ids=lambda mode: mode.id)
def test_the_scoring_engines_stream(mode: Mode, pair_dirs, tmp_path: Path) -> None:
    """FT's layers bit for bit, all but the last, whose final row is within the tolerance: it runs on rows."""
    pt, ft = pair_dirs(mode.pair, mode.dtype)
    names = ("dtype", "enforce_eager", "attention_backend", "gpu_memory_utilization")
    args = {name: value for name, value in mode.engine_args().items() if name in names}
    spec = {"pt": pt, "ft": ft, "prompts": tiny_models.prompts(5, seed=7), "engine_args": args}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    stock, ours = (_stream(which, tmp_path) for which in ("stock", "tuco"))
    last = tiny_models.SHAPE["num_hidden_layers"] - 1
    for theirs, mine in zip(stock, ours, strict=True):
        for name in ("self_attn", "mlp"):
            for layer in range(last):
                key = f"{layer}.{name}"
                assert torch.equal(theirs[key], mine[key]), key
            row, expected = mine[f"{last}.{name}"].float(), theirs[f"{last}.{name}"][-1:].float()
            assert row.shape == expected.shape
            assert (row - expected).abs().sum() <= tolerances.FINAL_HIDDEN[mode.dtype] * expected.abs().sum()


def _stream(which: str, directory: Path) -> list[dict[str, torch.Tensor]]:
    """What flows through FT's layers, by ``stream_dump`` in a process of its own."""
    script = Path(tiny_models.__file__).with_name("parity") / "stream_dump.py"
    out = directory / f"{which}.pt"
    command = [sys.executable, str(script), which, str(directory / "spec.json"), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(out, map_location="cpu")["seen"]
