"""Alpha per request and scores per token: against the oracle, and against the same request served alone."""

import numpy as np
import pytest
import steered
import tiny_models
import tolerances
from engines import in_this_process
from scored import assert_responses_are_true
from vllm import SamplingParams

from tuco_vllm import TucoLLM
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError

ENGINE = {
    "dtype": "float32",
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": 32,  # the default of 128 would cache none of these prompts
    "kv_cache_memory_bytes": 256 << 20,
    "max_num_batched_tokens": 96,  # prompts arrive in chunks, beside requests that decode
    "max_num_seqs": 64,
    "seed": 0,
}
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@pytest.fixture(
    scope="module", params=[pytest.param("eager", marks=pytest.mark.quick), "compiled", "adapter"]
)
def served(request: pytest.FixtureRequest, models_of, tmp_path_factory):
    """A pair and its engine, one start for all tests of an execution mode; compiled as users run it.

    Under an adapter FT is the model that PEFT merges.
    """
    eager = request.param != "compiled"
    if eager:
        pair, models = models_of("pair" if request.param == "eager" else "adapter", "llama")
    else:  # there are miscompilations that only start with the fourth layer; each takes a quarter of a minute
        pair = models = tiny_models.make_pair("mistral", tmp_path_factory.mktemp("deep"), num_hidden_layers=4)
    with (
        in_this_process(eager),
        TucoLLM(*models, task="generate", enforce_eager=eager, **ENGINE) as llm,
    ):
        yield pair, llm


def only(outputs):
    return [output.outputs[0] for output in outputs]


def test_a_mixed_batch_is_the_oracles(served) -> None:
    pair, llm = served
    prompts, alphas = steered.requests(64)
    for completion, prompt, alpha in zip(
        only(llm.generate(prompts, GREEDY, alphas)), prompts, alphas, strict=True
    ):
        steered.assert_true(pair, prompt, alpha, completion.token_ids, completion.tuco_norms)


def test_responses_and_traces_are_the_oracles(served) -> None:
    pair, llm = served
    assert_responses_are_true(llm._engine.stream, pair, "float32")


def test_a_response_that_was_generated_has_the_scores_it_came_with(served) -> None:
    _, llm = served
    prompts = steered.prompts(6, longest=60, seed=4)
    params = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True, seed=5)
    completions = only(llm.generate(prompts, params))
    scores = llm.score(prompts, [list(completion.token_ids) for completion in completions], trace=True)
    for completion, score, prompt in zip(completions, scores, prompts, strict=True):
        assert score.response_tucos == pytest.approx(completion.tuco, abs=tolerances.TUCO_FLOAT32)
        assert score.response_tucos[0] == score.tuco == score.prompt_tucos[-1]
        assert len(score.prompt_tucos) == len(prompt)


def test_rows_that_cannot_be_read_harm_nobody(served) -> None:
    """Only we ask for rows of a prompt; who does it by hand, and wrong, gets none."""
    _, llm = served
    [prompt] = steered.prompts(1, longest=20, seed=6)
    end = len(prompt) - 1
    bad = [[5, 2, [], False, "ft"], [0, 10**6, [], False, "ft"], "all", [-1, 3, [], False, "ft"], [0, 1]]
    bad += [[0.0, 1.0, [], False, "ft"], {"a": 1}, [0, end, [-5], False, "ft"], [0, end, [], 1, "ft"]]
    bad += [[0, end, [], False, "both"], [0, end, [0.5], False, "pt"]]
    params = [SamplingParams(max_tokens=1, extra_args={"tuco_rows": rows}) for rows in bad]
    params.append(SamplingParams(max_tokens=4, extra_args={"tuco_rows": [0, end, [], False, "ft"]}))
    params.append(SamplingParams(max_tokens=2, ignore_eos=True))
    outputs = llm._engine.llm.generate([{"prompt_token_ids": prompt}] * len(params), params, use_tqdm=False)
    completions = only(outputs)
    assert all(completion.routed_experts is None for completion in completions)
    assert [completion.finish_reason for completion in completions[-2:]] == ["error", "length"]


def test_a_mixed_batch_is_its_requests_alone(served) -> None:
    _, llm = served
    prompts, alphas = steered.requests(64, seed=1)
    together = only(llm.generate(prompts, GREEDY, alphas))
    again = only(llm.generate(prompts, GREEDY, alphas))  # now from the prefix cache
    for place, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True)):
        alone = only(llm.generate([prompt], GREEDY, alpha))[0]
        steered.assert_same(together[place], alone, f"request {place}, alone")
        steered.assert_same(together[place], again[place], f"request {place}, warm")


def test_neighbours_that_ask_for_nothing(served) -> None:
    """Plain, scored and steered requests in one batch: each gets what it gets alone, and no more."""
    pair, llm = served
    prompts = steered.prompts(12, longest=60, seed=2)
    kinds = [{}, {"tuco": True}, {"alpha": 0.5}, {"alpha": 0.5, "tuco": "layers"}] * 3
    engine = llm._engine.llm
    wishes = [GREEDY.clone() for _ in kinds]
    for params, kind in zip(wishes, kinds, strict=True):
        params.extra_args = kind or None
    lora = llm._engine._adapters.of(llm.pair.ft.adapter)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = engine.generate(asked, wishes, use_tqdm=False, lora_request=lora)
    for completion, prompt, kind in zip(only(outputs), prompts, kinds, strict=True):
        norms, scored = completion.routed_experts, bool(kind.get("tuco"))
        assert (norms is not None) == scored
        alone = only(llm.generate([prompt], GREEDY, kind.get("alpha", 1.0)))[0]
        assert list(completion.token_ids) == list(alone.token_ids)
        if scored:
            steered.assert_true(pair, prompt, kind.get("alpha", 1.0), completion.token_ids, norms)


@pytest.mark.parametrize("order", ["plain first", "scored first"])
def test_prefixes_are_shared_only_where_they_are_alike(served, order) -> None:
    """An unscored and a scored request with one prefix, and the reverse; then two alphas with it."""
    pair, llm = served
    stem = steered.prompts(2, seed=40 + len(order))[1][:64]
    first, second = [*stem, 5, 6, 7], [*stem, 8, 9]
    scored = order == "scored first"
    llm.generate([first], GREEDY, scores=scored)
    for prompt, alpha in ((second, 1.0), (second, 0.5), (first, 0.25), (first, 0.5), (second, 1.0)):
        completion = only(llm.generate([prompt], GREEDY, alpha))[0]
        steered.assert_true(pair, prompt, alpha, completion.token_ids, completion.tuco_norms)
    assert only(llm.generate([second], GREEDY, scores=False))[0].tuco is None


def test_without_scores_ranges_are_the_oracles(served) -> None:
    """PT runs in the layers of a step's ranges only, uncompiled; prompts in chunks, then from the cache."""
    pair, llm = served
    prompts = steered.prompts(18, longest=90, seed=6)
    ranged = [(*steered.RANGED, steered.in_layers(0.25, 0, 1), 1.0)[place % 5] for place in range(18)]
    for alphas in (ranged, ranged, [steered.RANGED[2]] * 18):
        for completion, prompt, alpha in zip(
            only(llm.generate(prompts, GREEDY, alphas, scores=False)), prompts, alphas, strict=True
        ):
            assert completion.tuco is None
            steered.assert_greedy(pair, prompt, alpha, completion.token_ids)


def test_a_prefix_of_a_range_is_shared_only_where_pt_was_written_alike(served) -> None:
    """One stem: a block that has PT's half in some layers serves nobody who reads it in others."""
    pair, llm = served
    [stem] = steered.prompts(1, longest=90, seed=47)
    stem = (stem * 70)[:70]
    for place, (alpha, scored) in enumerate(
        (alpha, scored)
        for scored in (False, True, False)
        for alpha in (*steered.RANGED, steered.in_layers(0.5, 0, 1), 0.5, 1.0)
    ):
        prompt = [*stem, place % 7]
        completion = only(llm.generate([prompt], GREEDY, alpha, scores=scored))[0]
        steered.assert_greedy(pair, prompt, alpha, completion.token_ids)
        if scored:
            steered.assert_scored(pair, prompt, alpha, completion.token_ids, completion.tuco_norms)


def test_what_is_the_same_has_one_cache(served) -> None:
    """All layers are no range, and alpha 1 has none: the same tokens, from the same blocks."""
    _, llm = served
    everywhere = steered.in_layers(0.5, 0, llm.num_layers - 1)
    for first, plain, same in ((5, 0.5, everywhere), (6, 1.0, steered.in_layers(1.0, 0, 0))):
        prompt = [first, *range(10, 80)]
        outputs = [
            llm.generate([prompt], GREEDY, alpha, scores=False)[0]
            for alpha in (plain, same, steered.in_layers(0.5, 0, 0))
        ]
        assert [output.num_cached_tokens for output in outputs] == [0, 64, 0]
        of_plain, of_same, of_range = only(outputs)
        assert of_plain.token_ids == of_same.token_ids
        assert of_plain.token_ids != of_range.token_ids


def test_alpha_zero_is_pt_under_fts_embedding_and_head(served) -> None:
    pair, llm = served
    prompt = steered.prompts(2, seed=3)[1][:50]
    completion = only(llm.generate([prompt], GREEDY, 0.0))[0]
    steered.assert_true(pair, prompt, 0.0, completion.token_ids, completion.tuco_norms)
    assert completion.token_ids != only(llm.generate([prompt], GREEDY, 1.0))[0].token_ids


def test_prompt_scores_are_the_scorers(served) -> None:
    pair, llm = served
    prompts = steered.prompts(6, longest=90, seed=4)
    scores = llm.score(prompts)
    completions = only(llm.generate(prompts, GREEDY))
    for score, completion in zip(scores, completions, strict=True):
        assert abs(score.tuco - completion.tuco[0]) <= tolerances.TUCO_FLOAT32
    truth = steered.oracle(*pair).score_batch(prompts)
    assert max(abs(a.tuco - b.tuco) for a, b in zip(scores, truth, strict=True)) <= tolerances.TUCO_FLOAT32


def test_several_samples_logprobs_and_stop_strings(served) -> None:
    _, llm = served
    prompts, alphas = steered.requests(8, seed=5)
    sampled = SamplingParams(max_tokens=8, temperature=1.0, seed=7, n=4, logprobs=2, ignore_eos=True)
    outputs = llm.generate(prompts, sampled, alphas)
    again = llm.generate(prompts, sampled, alphas)
    for one, two in zip(outputs, again, strict=True):
        assert len(one.outputs) == 4
        for a, b in zip(one.outputs, two.outputs, strict=True):
            steered.assert_same(a, b, "a seeded sample, repeated")
            assert len(a.logprobs) == len(a.token_ids)
            assert all(2 <= len(step) <= 3 and min(step) >= 0 for step in a.logprobs)  # no columns of ours
    assert len({tuple(c.token_ids) for o in outputs for c in o.outputs}) > 8

    whole = only(llm.generate(prompts[:1], GREEDY))[0]
    stop = whole.text[1:3]
    cut = only(llm.generate(prompts[:1], SamplingParams(max_tokens=8, temperature=0.0, stop=[stop])))[0]
    assert cut.finish_reason == "stop"
    assert len(cut.tuco) == len(cut.token_ids) < len(whole.token_ids)
    assert cut.tuco == pytest.approx(whole.tuco[: len(cut.tuco)], abs=tolerances.TUCO_FLOAT32)


@pytest.mark.parametrize(
    "alpha",
    [
        *(float("nan"), float("inf"), -0.5, 3, "1", True, None, [1.0, 2.0, 3.0]),
        *({}, {"value": 0.5}, steered.in_layers(0.5, 1, 0), steered.in_layers(0.5, 0, 4)),
    ],
)
def test_bad_alpha_is_refused_before_anything_runs(served, alpha) -> None:
    _, llm = served
    with pytest.raises(InputError, match="alpha"):
        llm.generate(["a", "b"], GREEDY, alpha if isinstance(alpha, list) else [1.0, alpha])


def test_wishes_have_one_place(served) -> None:
    """In vLLM's own LLM they stand in extra_args; beside ``alpha=`` they would be lost without a word."""
    _, llm = served
    params = GREEDY.clone()
    for name in ("alpha", "tuco_alpha_layers", "tuco"):
        params.extra_args = {name: None}
        with pytest.raises(InputError, match=f"prompt 0: {name} is in extra_args"):
            llm.generate(["a"], params)


def test_alphas_may_be_an_array(served) -> None:
    _, llm = served
    prompts = [[5, 6, 7]] * 2
    by_array, by_list = (only(llm.generate(prompts, GREEDY, a)) for a in (np.array([0.0, 0.5]), [0.0, 0.5]))
    assert [c.token_ids for c in by_array] == [c.token_ids for c in by_list]
    assert by_array[0].tuco != by_array[1].tuco


def test_prompts_may_be_as_long_as_leaves_room_for_a_token(served) -> None:
    _, llm = served
    longest = [5] * (tiny_models.MAX_LEN - 1)
    assert len(only(llm.generate([longest], GREEDY))[0].token_ids) == 1
    with pytest.raises(PromptError, match="prompt 1: "):
        llm.generate([longest, [*longest, 5]], GREEDY)


def test_a_bad_alpha_behind_our_back_fails_its_request_only(served) -> None:
    """vLLM's own LLM checks no extra_args: the scheduler ends such a request, and the engine lives on."""
    _, llm = served
    engine = llm._engine.llm
    good = {"alpha": steered.in_layers(0.5, 0, 2)}
    params = [GREEDY.clone() for _ in range(4)]
    beyond = llm.num_layers
    for each, alpha in zip(
        params[1:], (float("nan"), {"value": 0.5}, steered.in_layers(0.5, 0, beyond)), strict=True
    ):
        each.extra_args = {"alpha": alpha}
    params[0].extra_args = good
    outputs = only(engine.generate([{"prompt_token_ids": [5, 6, 7]}] * 4, params, use_tqdm=False))
    assert [completion.finish_reason for completion in outputs] == ["length", "error", "error", "error"]
