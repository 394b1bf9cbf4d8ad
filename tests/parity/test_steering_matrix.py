"""Steered requests where vLLM's machinery gets in the way: preemption, speculation, ranks, runner V2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import steered
import tiny_models
import torch
from vllm import SamplingParams

from tuco_vllm import TucoLLM

ENGINE = {
    "dtype": "float32",
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": 32,  # the default of 128 would cache none of these prompts
    "kv_cache_memory_bytes": 64 << 20,
    "seed": 0,
}
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def assert_all_true(pair, prompts, alphas, outputs) -> None:
    for output, prompt, alpha in zip(outputs, prompts, alphas, strict=True):
        completion = output.outputs[0]
        steered.assert_true(pair, prompt, alpha, completion.token_ids, completion.tuco_norms)


def metric(llm: TucoLLM, name: str) -> int:
    return sum(m.value for m in llm._engine.llm.get_metrics() if m.name == name)


def test_preempted(pair_dirs) -> None:
    pair = pair_dirs("llama", "float32")
    prompts, alphas = steered.requests(16, longest=150)
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    with TucoLLM(
        *pair,
        task="generate",
        enforce_eager=True,
        num_gpu_blocks_override=14,
        max_num_seqs=8,
        **{**ENGINE, "disable_log_stats": False},
    ) as llm:
        outputs = llm.generate(prompts, params, alphas)
        preemptions = metric(llm, "vllm:num_preemptions")
    assert preemptions > 0, "nothing was preempted: this test tested nothing"
    assert_all_true(pair, prompts, alphas, outputs)


def test_speculated(pair_dirs) -> None:
    """n-gram drafts: several rows of a request are scored in one step, rejected ones dropped."""
    pair = pair_dirs("llama_mha", "float32")
    prompts, alphas = steered.requests(12)
    prompts = [(prompt[:9] * 8)[:70] for prompt in prompts]  # repetitive, so that there are drafts
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    with TucoLLM(
        *pair,
        task="generate",
        enforce_eager=True,
        speculative_config=ngram,
        max_num_batched_tokens=128,
        **{**ENGINE, "disable_log_stats": False},
    ) as llm:
        outputs = llm.generate(prompts, params, alphas)
        drafted = metric(llm, "vllm:spec_decode_num_draft_tokens")
        accepted = metric(llm, "vllm:spec_decode_num_accepted_tokens")
    assert 0 < accepted < drafted, "no draft was accepted, or none rejected: this test tested nothing"
    assert_all_true(pair, prompts, alphas, outputs)


def test_two_ranks(pair_dirs) -> None:
    pair = pair_dirs("qwen3", "float32")
    prompts, alphas = steered.requests(16)
    with TucoLLM(*pair, task="generate", tensor_parallel_size=2, max_num_batched_tokens=96, **ENGINE) as llm:
        assert_all_true(pair, prompts, alphas, llm.generate(prompts, GREEDY, alphas))


SCARCE = {
    "num_gpu_blocks_override": 10,
    "max_model_len": 128,
    "disable_log_stats": False,
}
"""A cache in which requests that decode side by side run out of blocks."""


@pytest.mark.parametrize(
    ("name", "compiled", "cache"),
    [("llama", False, {}), ("qwen3", True, {}), ("llama_mha", False, SCARCE)],
    ids=["eager", "compiled", "preempted"],
)
def test_runner_v2(name, compiled, cache, pair_dirs, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton's interpreter runs V2's kernels")
    pair = pair_dirs(name, "float32")
    prompts, alphas = steered.requests(14, longest=60 if cache else 40)
    alphas[3] = alphas[8] = None  # plain: neither steered nor scored
    engine_args = {"enforce_eager": not compiled, "max_num_batched_tokens": 48, "max_num_seqs": 8}
    spec = {
        "pt": pair[0],
        "ft": pair[1],
        "engine_args": {**ENGINE, **engine_args, **cache},
        "generate": {
            "prompts": prompts,
            "alphas": alphas,
            "max_tokens": 24 if cache else 5,
            "preempts": bool(cache),
        },
        "out": str(tmp_path / "out.pt"),
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    script = Path(tiny_models.__file__).with_name("v2_on_cpu.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "spec.json")],
        capture_output=True,
        text=True,
        timeout=600,
        env=dict(os.environ),
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rounds = torch.load(tmp_path / "out.pt", weights_only=False)
    assert len(rounds) == 2  # cold, then from the prefix cache
    for completions in rounds:
        for (tokens, norms), prompt, alpha in zip(completions, prompts, alphas, strict=True):
            assert (norms is None) == (alpha is None)
            if alpha is not None:
                steered.assert_true(pair, prompt, alpha, tokens, norms)
