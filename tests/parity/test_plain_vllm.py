"""vLLM's own ``LLM`` with nothing but hf_overrides: scoring, and generation that is FT's."""

from typing import Any

import pytest
import tiny_models
import torch
from truth import assert_close
from vllm import LLM, SamplingParams

ENGINE: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": tiny_models.MAX_LEN,
    "kv_cache_memory_bytes": 64 << 20,
    "seed": 0,
}


def overrides(pt: str) -> dict[str, Any]:
    return {"architectures": ["TucoForCausalLM"], "tuco_pt": pt}


def as_prompts(ids: list[list[int]]) -> list[Any]:
    return [{"prompt_token_ids": prompt} for prompt in ids]


def close(llm: LLM) -> None:
    llm.llm_engine.engine_core.shutdown()


def test_pooling_runner_scores(pair_dirs) -> None:
    pair = pair_dirs("qwen3", "float32")
    llm = LLM(pair[1], runner="pooling", hf_overrides=overrides(pair[0]), **ENGINE)
    prompts = tiny_models.prompts(6)
    outputs = llm.encode(as_prompts(prompts), pooling_task="classify", use_tqdm=False)
    close(llm)
    assert_close(torch.stack([output.outputs.data for output in outputs]), pair, prompts, "float32")


def test_generate_runner_is_ft(pair_dirs) -> None:
    pt, ft = pair_dirs("llama", "float32")
    prompts = as_prompts(tiny_models.prompts(6, longest=100))
    params = SamplingParams(max_tokens=12, temperature=0.0, logprobs=3, ignore_eos=True)
    generated = []
    for extra in ({}, {"hf_overrides": overrides(pt), "runner": "generate"}):
        # One request at a time: a batch's make-up, which timing decides, moves last digits.
        llm = LLM(ft, max_num_seqs=1, **ENGINE, **extra)
        generated.append([o.outputs[0] for o in llm.generate(prompts, params, use_tqdm=False)])
        close(llm)
    for stock, ours in zip(*generated, strict=True):
        assert list(stock.token_ids) == list(ours.token_ids)
        assert stock.cumulative_logprob == ours.cumulative_logprob


def test_missing_pt_is_named(pair_dirs, capfd: pytest.CaptureFixture[str]) -> None:
    _, ft = pair_dirs("llama", "float32")
    with pytest.raises(RuntimeError):
        LLM(ft, runner="pooling", hf_overrides={"architectures": ["TucoForCausalLM"]}, **ENGINE)
    log = capfd.readouterr()
    assert 'add "tuco_pt": DIR to hf_overrides' in log.out + log.err
