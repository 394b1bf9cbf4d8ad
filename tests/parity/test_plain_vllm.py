"""vLLM's own ``LLM`` with nothing but hf_overrides: scoring, and generation that is FT's."""

from typing import Any

import pytest
import steered
import tiny_models
import torch
from truth import assert_close
from vllm import LLM, SamplingParams

from tuco_vllm import TucoLLM

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
    """As users run it: the engine's process finds the plugin by itself."""
    pair = pair_dirs("qwen3", "float32")
    llm = LLM(pair[1], runner="pooling", hf_overrides=overrides(pair[0]), **ENGINE)
    prompts = tiny_models.prompts(6)
    outputs = llm.encode(as_prompts(prompts), pooling_task="classify", use_tqdm=False)
    close(llm)
    assert_close(torch.stack([output.outputs.data for output in outputs]), pair, prompts, "float32")


@pytest.mark.usefixtures("in_process")
def test_generate_runner_is_ft(pair_dirs) -> None:
    """Plain requests, and scored ones at alpha = 1, get stock FT's tokens and the very logprobs."""
    pt, ft = pair_dirs("llama", "float32")
    prompts = as_prompts(tiny_models.prompts(6, longest=100))
    params = SamplingParams(max_tokens=12, temperature=0.0, logprobs=3, ignore_eos=True)
    scored = params.clone()
    scored.extra_args = {"alpha": 1, "tuco": True}
    # One request at a time: a batch's make-up, which timing decides, moves last digits.
    llm = LLM(ft, max_num_seqs=1, **ENGINE)
    stock = [o.outputs[0] for o in llm.generate(prompts, params, use_tqdm=False)]
    close(llm)
    llm = LLM(ft, max_num_seqs=1, runner="generate", hf_overrides=overrides(pt), **ENGINE)
    ours = [[o.outputs[0] for o in llm.generate(prompts, p, use_tqdm=False)] for p in (params, scored)]
    close(llm)
    for wanted, plain, with_scores in zip(stock, *ours, strict=True):
        assert plain.routed_experts is None
        assert with_scores.routed_experts.shape == (12, tiny_models.SHAPE["num_hidden_layers"], 7)
        for completion in (plain, with_scores):
            assert list(completion.token_ids) == list(wanted.token_ids)
            assert completion.cumulative_logprob == wanted.cumulative_logprob


@pytest.mark.slow
@pytest.mark.parametrize("task", ["score", "generate"])
def test_deep_models_compile_right(task, tmp_path) -> None:
    """Twelve layers: torch 2.13 compiled a two-pass model wrong from its fourth layer on, without a word."""
    pair = tiny_models.make_pair("llama", tmp_path, num_hidden_layers=12)
    prompts = steered.prompts(8, longest=100)
    engine = {**ENGINE, "enforce_eager": False}
    with TucoLLM(*pair, task=task, **engine) as llm:
        norms = torch.stack([norms for _, norms in llm._engine.stream(enumerate(prompts))])
        assert_close(norms, pair, prompts, "float32")
        if task == "generate":
            alphas = [0.0, 0.5, 1.0, 1.5] * 2
            params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
            for output, prompt, alpha in zip(
                llm.generate(prompts, params, alphas), prompts, alphas, strict=True
            ):
                completion = output.outputs[0]
                steered.assert_true(pair, prompt, alpha, completion.token_ids, completion.tuco_norms)


def test_missing_pt_is_named(pair_dirs) -> None:
    """Before any weight is loaded, in the caller's own process."""
    _, ft = pair_dirs("llama", "float32")
    for runner in ("pooling", "generate"):
        with pytest.raises(ValueError, match='add "tuco_pt": DIR to hf_overrides'):
            LLM(ft, runner=runner, hf_overrides={"architectures": ["TucoForCausalLM"]}, **ENGINE)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"enable_lora": True}, "LoRA"),
        ({"enable_prompt_embeds": True}, "prompt embeddings"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "its own scheduler"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(pair_dirs, option, named) -> None:
    pt, ft = pair_dirs("llama", "float32")
    with pytest.raises(ValueError, match=named):
        LLM(ft, runner="generate", hf_overrides=overrides(pt), **ENGINE, **option)
