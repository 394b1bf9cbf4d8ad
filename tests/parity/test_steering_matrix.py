"""Steered requests where vLLM's machinery gets in the way: preemption, speculation, ranks.

Runner V2 has a file of its own, ``test_steering_v2``.
"""

import pytest
import steered
import tiny_models
from counters import counter
from truth import assert_own_streams_close
from vllm import RequestOutput, SamplingParams

from tuco_vllm import TucoLLM

ENGINE = {
    "dtype": "float32",
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": 32,  # the default of 128 would cache none of these prompts
    "kv_cache_memory_bytes": 64 << 20,
    "seed": 0,
}
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def in_some_layers(llm, prompts, params) -> tuple[list[steered.Alpha], list[RequestOutput]]:
    """Requests for which PT runs in some layers only, and what they get."""
    alphas = [steered.RANGED[1 + place % 2] for place in range(len(prompts))]
    return alphas, llm.generate(prompts, params, alphas, scores=False)


def assert_all_greedy(pair, prompts, alphas, outputs) -> None:
    for output, prompt, alpha in zip(outputs, prompts, alphas, strict=True):
        assert output.outputs[0].tuco is None
        steered.assert_greedy(pair, prompt, alpha, output.outputs[0].token_ids)


def assert_all_true(pair, prompts, alphas, outputs) -> None:
    for output, prompt, alpha in zip(outputs, prompts, alphas, strict=True):
        completion = output.outputs[0]
        steered.assert_true(pair, prompt, alpha, completion.token_ids, completion.tuco_norms)


@pytest.mark.parametrize("kind", ["pair", "adapter"])
@pytest.mark.usefixtures("in_process")
def test_preempted(kind: str, models_of) -> None:
    pair, models = models_of(kind, "llama")
    prompts, alphas = steered.requests(16, longest=150)
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    with TucoLLM(
        *models,
        task="generate",
        enforce_eager=True,
        num_gpu_blocks_override=14,
        max_num_seqs=8,
        **{**ENGINE, "disable_log_stats": False},
    ) as llm:
        outputs = llm.generate(prompts, params, alphas)
        preemptions = counter(llm._engine.llm, "num_preemptions")
        ranged = in_some_layers(llm, prompts, params)
        more = counter(llm._engine.llm, "num_preemptions") - preemptions
    assert min(preemptions, more) > 0, "nothing was preempted: this test tested nothing"
    assert_all_greedy(pair, prompts, *ranged)
    assert_all_true(pair, prompts, alphas, outputs)


@pytest.mark.parametrize("kind", ["pair", pytest.param("adapter", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("in_process")
def test_speculated(kind: str, models_of) -> None:
    """n-gram drafts: several rows of a request are scored in one step, rejected ones dropped."""
    pair, models = models_of(kind, "llama_mha")
    prompts, alphas = steered.requests(12)
    prompts = [(prompt[:9] * 8)[:70] for prompt in prompts]  # repetitive, so that there are drafts
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    with TucoLLM(
        *models,
        task="generate",
        enforce_eager=True,
        speculative_config=ngram,
        max_num_batched_tokens=128,
        max_num_seqs=32,  # more, with their drafts, vLLM refuses beside LoRA
        **{**ENGINE, "disable_log_stats": False},
    ) as llm:
        outputs = llm.generate(prompts, params, alphas)
        drafted = counter(llm._engine.llm, "spec_decode_num_draft_tokens")
        accepted = counter(llm._engine.llm, "spec_decode_num_accepted_tokens")
        ranged = in_some_layers(llm, prompts, params)
        # A prompt of which the cache leaves one token, to which vLLM adds drafts at once; three times.
        block = llm._engine.llm.llm_engine.vllm_config.cache_config.block_size
        one_left = (prompts[0] * 8)[: block + 1]
        scores = [
            llm.score([one_left], [[5, 6, 7]], output_co=True, relative_reward=True)[0] for _ in range(3)
        ]
    assert_own_streams_close(scores, [(one_left, [5, 6, 7])] * 3, pair, "float32")
    assert_all_greedy(pair, prompts, *ranged)
    assert 0 < accepted < drafted, "no draft was accepted, or none rejected: this test tested nothing"
    assert_all_true(pair, prompts, alphas, outputs)


@pytest.mark.parametrize(
    ("kind", "eager"),
    [
        ("pair", True),
        pytest.param("pair", False, marks=pytest.mark.slow),
        pytest.param("adapter", True, marks=pytest.mark.slow),
    ],
)
def test_two_ranks(kind: str, eager: bool, models_of) -> None:
    pair, models = models_of(kind, "qwen3")
    prompts, alphas = steered.requests(16)
    ranks = {"tensor_parallel_size": 2, "max_num_batched_tokens": 96, "enforce_eager": eager}
    with TucoLLM(*models, task="generate", **ranks, **ENGINE) as llm:
        assert_all_true(pair, prompts, alphas, llm.generate(prompts, GREEDY, alphas))
        assert_all_greedy(pair, prompts, *in_some_layers(llm, prompts, GREEDY))
