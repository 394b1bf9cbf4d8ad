"""What GPUs compile (``gpu_compile``: piecewise, Inductor), on a CPU: scores and texts are the oracle's.

Slow: an engine compiles for minutes on two cores.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gpu_compile
import pytest
import steered
import tiny_models
import torch
from truth import assert_close

pytestmark = pytest.mark.slow

SIZES = [4, 16, 48]
"""What batches are padded to; chunks of 48 tokens."""

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "disable_log_stats": False,
    "seed": 0,
    # vLLM turns these on for what quantized models need; their patterns are CUDA's ops.
    "compilation_config": {"pass_config": {"fuse_norm_quant": False, "fuse_act_quant": False}},
}


@pytest.fixture(scope="module", params=["opaque", "twins"])
def compiled(request: pytest.FixtureRequest) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """The answer to a spec of a process that compiles as GPUs do; and it was compiled so."""
    pytest.importorskip("triton", reason="Triton's interpreter runs V2's kernels")
    spawned, opaque = multiprocessing.get_context("spawn"), request.param == "opaque"
    with ProcessPoolExecutor(
        1, mp_context=spawned, initializer=gpu_compile.prepare, initargs=(opaque,)
    ) as process:

        def ask(ops: set[str], pt: str, ft: str, **spec: Any) -> Any:
            args = {**ENGINE, **spec.pop("engine_args", {})}
            told = process.submit(gpu_compile.run, {"pt": pt, "ft": ft, "engine_args": args, **spec}).result()
            assert told["graphs"] > 0
            assert told["pieces"] > tiny_models.SHAPE["num_hidden_layers"], (
                "attention did not split the graph"
            )
            assert set(told["called"]) == (ops if opaque else set())
            return told["answer"]

        yield ask


@pytest.mark.parametrize(("kind", "padded"), [("pair", False), ("pair", True), ("adapter", False)])
def test_scores(kind, padded, compiled, models_of) -> None:
    """Chunks, warm prefixes; few rows after many in the same buffers."""
    pair, models = models_of(kind, "qwen3")
    rounds = [tiny_models.prompts(7, longest=70), tiny_models.prompts(3, longest=3, seed=1)]
    spec = {"pad_to": SIZES} if padded else {}
    ops = {"accumulate_contribution"} | ({"dual_rms_norm"} if kind == "pair" else set())
    answer = compiled(ops, *models, rounds=[*rounds, rounds[0]], **spec)
    for prompts, norms in zip([*rounds, rounds[0]], answer, strict=True):
        assert_close(torch.from_numpy(norms), pair, prompts, "float32")


@pytest.mark.parametrize(("kind", "graphs"), [("pair", False), ("pair", True), ("adapter", False)])
def test_steered(kind, graphs, compiled, models_of) -> None:
    """Mixed batches; with graphs, decode steps in padded buffers, poisoned as ``graphs_on_cpu`` has it."""
    pair, models = models_of(kind, "qwen3")
    prompts, alphas = steered.requests(6, longest=60, seed=2)
    requests = [
        {
            "prompt": prompt,
            "alpha": None if place % 3 == 2 else alpha,
            "temperature": 0.0,
            "ignore_eos": True,
            "max_tokens": 6 if place % 3 == 2 else 4,
        }
        for place, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True))
    ]
    spec = {"graphs": SIZES} if graphs else {}
    ops = set(gpu_compile.OPS)
    if kind == "adapter":
        ops.remove("dual_rms_norm")  # PT's norms are FT's
    answer = compiled(ops, *models, generate=requests, **spec)
    if graphs:
        assert answer["steps"]["PIECEWISE padded"] > 0
    for completions in answer["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)
