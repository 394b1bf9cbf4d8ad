"""POST /v1/tuco/score of a running server: the oracle's, and what generating said of the same tokens."""

import pytest
import steered
import tolerances
from server.test_serve import CHAT, GREEDY, MODEL


def test_prompt_scores_are_the_oracles(server):
    prompts = steered.prompts(6, longest=90, seed=26)
    answer = server.post("/v1/tuco/score", {"model": MODEL, "input": prompts}).json()
    truth = steered.oracle(*server.pair).score_batch(prompts)
    for place, (entry, true) in enumerate(zip(answer["data"], truth, strict=True)):
        assert entry["index"] == place
        assert entry["tuco"] == pytest.approx(true.tuco, abs=tolerances.TUCO_FLOAT32)
        assert entry["tuco"] + entry["preco"] == pytest.approx(1)
        assert entry["prompt_tokens"] == len(prompts[place])
        assert entry["layers"]["cum_ftc_norms"] == pytest.approx(true.cum_ftc_norms, rel=1e-4)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    text = "the cat sat on the mat"
    [raw] = server.post("/v1/tuco/score", {"input": text}).json()["data"]
    [choice] = server.complete(prompt=text, max_tokens=1, tuco=True)["choices"]
    assert raw["tuco"] == pytest.approx(choice["tuco"]["prompt"], abs=tolerances.TUCO_FLOAT32)


def test_a_response_has_the_scores_it_was_generated_with(server):
    prompts = steered.prompts(4, longest=90, seed=27)
    completed = server.complete(prompt=prompts, tuco=True, **GREEDY)["choices"]
    ids = [choice["token_ids"] for choice in completed]
    answer = server.post("/v1/tuco/score", {"input": prompts, "response": ids, "trace": True}).json()
    for entry, choice, prompt in zip(answer["data"], completed, prompts, strict=True):
        tucos = entry["response"]["tokens"]
        assert tucos == pytest.approx(choice["tuco"]["tokens"], abs=tolerances.TUCO_FLOAT32)
        assert entry["response"]["token_ids"] == choice["token_ids"]
        assert (len(entry["trace"]), entry["trace"][-1]) == (len(prompt), entry["tuco"])
    chat = [*CHAT, {"role": "assistant", "content": "the cat sat"}]
    [turn] = server.post("/v1/tuco/score", {"input": chat}).json()["data"]
    [apart] = server.post(
        "/v1/tuco/score", {"input": CHAT, "response": turn["response"]["token_ids"]}
    ).json()["data"]
    assert turn["response"]["tokens"] == pytest.approx(
        apart["response"]["tokens"], abs=tolerances.TUCO_FLOAT32
    )
