"""Steered requests on Model Runner V2, the default on GPUs, run on a CPU (``v2_on_cpu``)."""

from typing import Any

import pytest
import steered
import tiny_models

ENGINE = {
    "dtype": "float32",
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": 32,  # the default of 128 would cache none of these prompts
    "kv_cache_memory_bytes": 64 << 20,
    "seed": 0,
    "disable_log_stats": False,
}
GREEDY = {"temperature": 0.0, "ignore_eos": True}


def asked_twice(on_v2, pair, requests: list[dict[str, Any]], **engine_args: Any) -> dict[str, Any]:
    """What ``v2_on_cpu`` says of ``requests``: cold, then from the prefix cache."""
    spec = {"pt": pair[0], "ft": pair[1], "engine_args": {**ENGINE, **engine_args}, "generate": requests}
    if "num_gpu_blocks_override" in engine_args:  # nothing stays in such a cache for long
        return on_v2(spec | {"times": 1})
    answer = on_v2(spec)
    assert len(answer["rounds"]) == 2
    assert answer["counters"]["vllm:prefix_cache_hits"] > 0, "the second round tested nothing new"
    return answer


SCARCE = {"num_gpu_blocks_override": 10, "max_model_len": 128}
"""A cache in which requests that decode side by side run out of blocks."""


@pytest.mark.parametrize(
    ("kind", "name", "compiled", "cache"),
    [
        ("pair", "llama", False, {}),
        pytest.param("pair", "qwen3", True, {}, marks=pytest.mark.slow),
        ("pair", "llama_mha", False, SCARCE),
        ("adapter", "llama", False, {}),
    ],
    ids=["eager", "compiled", "preempted", "adapter"],
)
def test_a_mixed_batch(kind, name, compiled, cache, models_of, on_v2) -> None:
    pair, models = models_of(kind, name)
    # More than run at once. The interpreter takes a second a step.
    prompts, alphas = steered.requests(10, longest=60 if cache else 40)
    alphas[3] = alphas[8] = None  # plain: neither steered nor scored
    fields = {**GREEDY, "max_tokens": 20 if cache else 4}
    requests = [
        {"prompt": prompt, "alpha": alpha, **fields, "logprobs": 2 if place % 4 == 0 else None}
        for place, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True))
    ]
    for place, request in enumerate(
        requests[4:7]
    ):  # when the others have ended, PT runs in their layers only
        request |= {"alpha": steered.RANGED[place], "tuco": False, "max_tokens": fields["max_tokens"] + 3}
    engine_args = {"enforce_eager": not compiled, "max_num_batched_tokens": 48, "max_num_seqs": 8, **cache}
    answer = asked_twice(on_v2, models, requests, **engine_args)
    if cache:
        assert answer["counters"]["vllm:num_preemptions"] > 0, "nothing was preempted: this tested nothing"
    for completions in answer["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)


def test_speculated(pair_dirs, on_v2) -> None:
    """n-gram drafts, on V2 by kernels of its own: rows of rejected ones are dropped."""
    pair = pair_dirs("llama_mha", "float32")
    prompts, alphas = steered.requests(7)
    alphas[4] = None
    requests = [
        # Repetitive, so that there are drafts.
        {"prompt": (prompt[:9] * 8)[:70], "alpha": alpha, **GREEDY, "max_tokens": 14}
        for prompt, alpha in zip(prompts, alphas, strict=True)
    ]
    for request in requests[::3]:  # the steps after them have no logprobs to put the scores behind
        request |= {"logprobs": 2, "max_tokens": 6}
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    answer = asked_twice(
        on_v2,
        pair,
        requests,
        enforce_eager=True,
        speculative_config=ngram,
        max_num_batched_tokens=128,
        max_num_seqs=8,
    )
    counters = answer["counters"]
    drafted, accepted = (counters[f"vllm:spec_decode_num_{kind}_tokens"] for kind in ("draft", "accepted"))
    assert 0 < accepted < drafted, "no draft was accepted, or none rejected: this test tested nothing"
    for completions in answer["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_64_requests_samples_and_stop_strings(compiled, pair_dirs, on_v2) -> None:
    """64 greedy requests in small chunks; beside them, some with four seeded samples and some that stop."""
    pair = pair_dirs("llama", "float32")
    greedy = [
        {"prompt": prompt, "alpha": alpha, **GREEDY, "max_tokens": 3}
        for prompt, alpha in zip(*steered.requests(64, longest=40), strict=True)
    ]
    sampled = [
        {"prompt": prompt, "alpha": alpha, "temperature": 1.0, "ignore_eos": True, "max_tokens": 3, "n": 4}
        for prompt, alpha in zip(*steered.requests(4, longest=40, seed=5), strict=True)
    ]
    for seed, request in enumerate(sampled):
        request |= {"seed": seed, "logprobs": 1}
    stopped, cuts = zip(*stopping_requests(pair, 3), strict=True)
    requests = [*greedy, *sampled, *stopped]
    engine_args = {"enforce_eager": not compiled, "max_num_batched_tokens": 96, "max_num_seqs": 96}
    rounds = asked_twice(on_v2, pair, requests, **engine_args)["rounds"]
    samples, again = ([[s["tokens"] for s in c] for c in completions[64:68]] for completions in rounds)
    assert samples == again, "seeded samples, repeated"
    for completions in rounds:
        steered.assert_round_is_true(pair, greedy, completions[:64])
        assert_samples_are_true(pair, sampled, completions[64:68])
        steered.assert_round_is_true(pair, stopped, completions[68:])
        for [completion], cut in zip(completions[68:], cuts, strict=True):
            assert completion["tokens"] == cut
            assert completion["finish_reason"] == "stop"


def stopping_requests(pair, count: int) -> list[tuple[dict[str, Any], list[int]]]:
    """Greedy requests with a stop string each that ends them early, and the tokens that are left of them."""
    tokenizer, found, length = tiny_models.tokenizer(), [], 4
    for prompt, alpha in zip(*steered.requests(40, longest=24, seed=6), strict=True):
        tokens = steered.greedy(pair, prompt, alpha, length)
        for cut in range(2, length):
            before, text = (tokenizer.decode(tokens[:end]) for end in (cut - 1, cut))
            stop = text[len(before) :]
            if stop.isascii() and stop.isalnum() and stop not in before:
                request = {"prompt": prompt, "alpha": alpha, **GREEDY, "max_tokens": length, "stop": [stop]}
                found.append((request, tokens[:cut]))
                break
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} of these completions have a text to stop at")


def assert_samples_are_true(pair, requests, completions) -> None:
    """Each sample's scores and logprobs are the oracle's for its own tokens, and the samples are several."""
    for request, samples in zip(requests, completions, strict=True):
        assert len(samples) == request["n"]
        assert len({tuple(sample["tokens"]) for sample in samples}) > 1
        for sample in samples:
            chosen = (pair, request["prompt"], request["alpha"], sample["tokens"])
            steered.assert_scored(*chosen, sample["norms"])
            steered.assert_sampled(*chosen, sample["logprobs"])
