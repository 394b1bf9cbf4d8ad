"""POST /v1/tuco/score of a running server: the oracle's, and what generating said of the same tokens."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import steered
import tolerances
from server.test_serve import CHAT, GREEDY, MODEL
from truth import true_log_probs


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


def test_streams_of_pt_beside_texts_that_are_generated(server):
    """OutputCo and the reward are true; texts that are generated meanwhile are what they are alone."""
    prompts, responses = steered.prompts(5, longest=90, seed=28), steered.prompts(5, longest=30, seed=29)
    body = {"input": prompts, "response": responses, "output_co": True, "relative_reward": True}
    long = {"prompt": prompts[-1], "max_tokens": 60, "temperature": 0.0, "ignore_eos": True}
    alone = server.complete(**long)["choices"][0]["text"]
    with ThreadPoolExecutor(2) as pool:
        meanwhile = pool.submit(server.complete, alpha=0.5, **long), pool.submit(server.complete, **long)
        data = server.post("/v1/tuco/score", body).json()["data"]
        data += server.post("/v1/tuco/score", body).json()["data"]
        steered_text, text = (future.result()["choices"][0]["text"] for future in meanwhile)
    assert text == alone
    assert steered_text == server.complete(alpha=0.5, **long)["choices"][0]["text"]
    for entry, prompt, response in zip(data, prompts * 2, responses * 2, strict=True):
        output_co = steered.oracle(*server.pair).output_co(prompt)
        assert entry["output_co"] == pytest.approx(output_co, abs=tolerances.OUTPUT_CO_FLOAT32)
        for side, directory in zip(("pt", "ft"), server.pair, strict=True):
            truth = true_log_probs(directory, tuple(prompt), tuple(response)).tolist()
            found = entry["response"][f"logps_{side}"]
            assert found == pytest.approx(truth, abs=tolerances.LOG_PROB_FLOAT32)


def test_a_token_lies_where_its_text_begins(server):
    body = {"input": "the cat", "response": " sat on the mät", "relative_reward": True}
    [entry] = server.post("/v1/tuco/score", body).json()["data"]
    offsets = entry["response"]["text_offsets"]
    assert len(offsets) == len(entry["response"]["token_ids"]) == len(entry["response"]["logps_ft"])
    assert offsets == sorted(offsets)
    assert (offsets[0], offsets[-1] < len(body["response"])) == (0, True)


def test_a_token_that_pt_does_not_have_has_no_reward(server):
    body = {"input": "the cat", "response": [490, 5], "relative_reward": True}
    answer = server.post("/v1/tuco/score", body)
    assert answer.status_code == 400
    assert "is not the same to the pre-trained model" in answer.json()["error"]["message"]
    assert server.post("/v1/tuco/score", {**body, "relative_reward": False}).status_code == 200
