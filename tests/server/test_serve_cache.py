"""`tuco serve` from a warm prefix cache: what a request gets does not depend on who asked before it."""

import pytest
import steered
import tolerances
from server.served import MODEL
from server.test_serve import GREEDY, joined, norms

HITS = "vllm:prefix_cache_hits_total"


def test_repeated_requests_are_cached_and_the_oracles(server):
    prompts, alphas = steered.requests(8, longest=90, seed=41)
    scores = {}
    for _ in range(2):
        before = server.metric(HITS)
        for place, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True)):
            [choice] = server.complete(prompt=prompt, alpha=alpha, tuco="layers", **GREEDY)["choices"]
            steered.assert_true(server.pair, prompt, alpha, choice["token_ids"], norms(choice["tuco"]))
            scores[place] = choice["tuco"]["tokens"]
    # Whole blocks of 32; a prompt's last token is always computed.
    whole = sum((len(prompt) - 1) // 32 * 32 for prompt in prompts)
    assert server.metric(HITS) - before == whole > 0
    for place, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True)):
        tuco = joined(server.stream(prompt=prompt, alpha=alpha, tuco=True, **GREEDY))
        assert tuco["tokens"] == pytest.approx(scores[place], abs=tolerances.TUCO_FLOAT32)


def test_a_prefix_is_shared_only_under_one_alpha(server):
    """Plain, scored and steered requests with one prefix: the cache of one kind never serves another."""
    stem = steered.prompts(2, longest=70, seed=42)[1]
    few = {**GREEDY, "max_tokens": 3}
    before = server.metric(HITS)
    wishes = [{}, {"tuco": True}, {"alpha": 0.5, "tuco": True}, {"alpha": 0.25, "tuco": True}]
    for ending, wish in ((ending, wish) for ending in ([5], [6, 7]) for wish in wishes):
        [choice] = server.complete(prompt=[*stem, *ending], **few, **wish)["choices"]
        alpha = wish.get("alpha", 1.0)
        assert choice["token_ids"] == steered.greedy(server.pair, [*stem, *ending], alpha, 3)
        assert ("tuco" in choice) == bool(wish.get("tuco"))
    assert server.metric(HITS) - before >= len(wishes) * 64
    [scored] = server.post("/v1/tuco/score", {"model": MODEL, "input": [[*stem, 5]]}).json()["data"]
    [truth] = steered.oracle(*server.pair).score_batch([[*stem, 5]])
    assert scored["tuco"] == pytest.approx(truth.tuco, abs=tolerances.TUCO_FLOAT32)
