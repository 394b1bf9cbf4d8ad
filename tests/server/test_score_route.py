"""POST /v1/tuco/score around a scorer that knows its answers: shapes of input, and what is refused."""

import asyncio
import json

import numpy as np
import pytest
import tiny_models
from fastapi import FastAPI
from fastapi.testclient import TestClient
from server.fake_vllm import rows

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.errors import EngineError
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.records import LAYERS, TucoScore
from tuco_vllm.score_requests import RowScores, ScoredTokens
from tuco_vllm.server.score import ScoreService, router
from tuco_vllm.steering import FT_STREAM

CHAT = [{"role": "user", "content": "the cat"}]
LIMIT = 20
JSON = {"content-type": "application/json"}


class Scorer:
    """A prompt's score says how long it is."""

    def __init__(self):
        self.running, self.most, self.seen = 0, 0, []
        self.ids, self.priorities = [], set()

    async def score(self, asked, request_id, priority, headers, lora=None):
        scored = isinstance(asked, ScoredTokens)
        token_ids = asked.token_ids if scored else asked
        self.ids.append(request_id)
        self.priorities.add(priority)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            self.seen.append(token_ids)
            await asyncio.sleep(0.3 if token_ids[-1] == 9 else 0)
            if token_ids[0] == 8:
                raise EngineError("it died")
            norms = rows(asked.asked.last + 1 if scored else len(token_ids), 1)[0]
            if token_ids[0] == 7:
                norms[-1, 2:] = np.inf
            if not scored:
                return norms
            wish, of_ft = asked.asked, asked.asked.stream == FT_STREAM
            return RowScores(
                norms if of_ft else None,
                np.arange(wish.first, len(token_ids), dtype=np.float32) / 100 if of_ft else None,
                np.array([3.0 if of_ft else 1.0], np.float32) if wish.state else None,
                -np.array(wish.targets, np.float32) - of_ft if wish.targets else None,
            )
        finally:
            self.running -= 1


@pytest.fixture
def scorer():
    return Scorer()


@pytest.fixture
def app(scorer):
    app = FastAPI()
    app.state.tuco = ScoreService(
        scorer, PromptEncoder(tiny_models.tokenizer(), max_model_len=LIMIT), ["m", "alias"]
    )
    app.include_router(router)
    return app


@pytest.fixture
def ask(app):
    def ask(body, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return TestClient(app).post("/v1/tuco/score", content=content, headers=JSON | headers)

    return ask


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("the cat", 1),
        (["the cat"], 1),
        ([5, 6, 7], 1),
        ([[5, 6, 7], [5]], 2),
        (CHAT, 1),
        ([CHAT, CHAT], 2),
        (["the cat", [5, 6], CHAT], 3),
    ],
)
def test_every_kind_of_input(ask, scorer, value, count):
    answer = ask({"model": "alias", "input": value}).json()
    assert (answer["object"], answer["model"]) == ("list", "alias")
    assert answer["id"].startswith("tuco-")
    assert [entry["index"] for entry in answer["data"]] == list(range(count))
    encoder = PromptEncoder(tiny_models.tokenizer())
    for entry, given in zip(
        answer["data"], value if count > 1 or value == ["the cat"] else [value], strict=True
    ):
        ids = encoder.encode(given).token_ids
        assert ids in scorer.seen
        norms = rows(len(ids), 1)[0]
        assert entry["prompt_tokens"] == len(ids)
        assert entry["tuco"] == pytest.approx(norms[-1, 3] / (norms[-1, 2] + norms[-1, 3]))
        assert entry["preco"] == 1 - entry["tuco"]
        for name in ("tuco_l2", "path_tuco", "cosine", "cancellation"):
            assert entry[name] == getattr(TucoScore.from_norms(norms.tolist(), len(ids)), name)
        assert entry["layers"] == {name: norms[:, NORM_COLUMNS.index(name)].tolist() for name in LAYERS}
    total = sum(entry["prompt_tokens"] for entry in answer["data"])
    assert answer["usage"] == {"prompt_tokens": total, "total_tokens": total}


def test_the_model_may_be_left_out_and_the_layers(ask):
    answer = ask({"input": "the cat", "layers": False}).json()
    assert answer["model"] == "m"
    assert "layers" not in answer["data"][0]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty list"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": [[5], []]}, "input[1]", "empty"),
        ({"input": [[5] * (LIMIT + 1)]}, "input[0]", "the limit is 20"),
        ({"input": [5] * (LIMIT + 1)}, "input", "the limit is 20"),
        ({"input": ["a", "x" * 10**6]}, "input[1]", "1000000 characters, more than the 20 tokens"),
        ({"input": ["a"] * 1025}, "input", "1025 prompts, the limit is 1024: send several requests"),
        ({"input": [5, "a"]}, "input", "neither token ids nor messages"),
        ({"input": ["a", 5]}, "input[1]", "a number"),
        ({"input": ["a", None]}, "input[1]", "null"),
        ({"input": [1.5]}, "input", "a number"),
        ({"input": [-1]}, "input", "vocabulary"),
        ({"input": [10**9]}, "input", "vocabulary"),
        ({"input": 5}, "input", "a number"),
        ({"input": None}, "input", "null"),
        ({"input": {"role": "user"}}, "input", "an object"),
        ({"input": [{"content": "x"}]}, "input", "no role"),
        ({"input": [CHAT, [{"role": "user", "content": 5}]]}, "input[1]", "content"),
        ({"input": "\ud800"}, "body", "hex escape"),
        ({}, "input", "missing"),
        ({"input": "a", "model": 5}, "model", "not a string"),
        ({"input": "a", "layers": 1}, "layers", "not a boolean"),
        ({"input": "a", "priority": True}, "priority", "not an integer"),
        ({"input": "a", "priority": 2**63}, "priority", "not an integer"),
        ({"input": "a", "alpha": 0.5}, "alpha", "not known here"),
        ([1], "body", "not an object"),
        (b"{", "body", "not JSON"),
        (b"[" * 10**5, "body", "not JSON"),
        (b"\xff\xfe\xff", "body", "not JSON"),
    ],
)
def test_bad_requests_are_refused_by_name(ask, scorer, body, param, message):
    answer = ask(body)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400
    assert (error["type"], error["param"]) == ("BadRequestError", param)
    assert message in error["message"]
    assert not scorer.seen


CHAT_IDS = PromptEncoder(tiny_models.tokenizer()).encode(CHAT).token_ids


@pytest.mark.parametrize(
    ("input", "response", "count"),
    [
        ([5, 6, 8], [7, 8, 9, 4], 4),
        ("the cat", " sat", None),
        ([*CHAT, {"role": "assistant", "content": "sat"}], None, None),
    ],
    ids=["ids", "texts", "a turn"],
)
def test_a_response_has_a_score_a_token(ask, input, response, count):
    [entry] = ask({"input": input, "response": response, "trace": True}).json()["data"]
    prompt, tucos = entry["prompt_tokens"], entry["response"]["tokens"]
    assert len(tucos) == len(entry["response"]["token_ids"]) == (count or len(tucos)) > 0
    assert tucos[0] == entry["tuco"] == entry["trace"][-1]
    assert tucos[1:] == pytest.approx([row / 100 for row in range(prompt, prompt + len(tucos) - 1)])
    assert entry["trace"][:-1] == pytest.approx([row / 100 for row in range(prompt - 1)])
    assert entry["response"]["mean"] == pytest.approx(sum(tucos) / len(tucos))


def test_each_of_several_inputs_has_its_own(ask):
    answer = ask({"input": ["the cat", [5, 6], "sat"], "response": [" sat", None, [7, 8]], "layers": False})
    first, second, third = answer.json()["data"]
    assert "response" not in second
    assert third["response"]["token_ids"] == [7, 8]
    assert not {"trace", "layers"} & set(first)
    tokens = [len(each["response"]["token_ids"]) for each in (first, third)]
    total = sum(each["prompt_tokens"] for each in (first, second, third)) + sum(tokens)
    assert answer.json()["usage"]["total_tokens"] == total


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": "a", "response": ""}, "input", "the response is empty"),
        ({"input": "a", "response": 3}, "input", "the response is a number"),
        ({"input": ["a", "b"], "response": ["c"]}, "response", "a list of 1, not a list of 2"),
        ({"input": ["a"], "response": "c"}, "response", "a string, not a list of 1"),
        ({"input": "a", "trace": 1}, "trace", "not a boolean"),
    ],
)
def test_a_bad_response_is_refused(ask, scorer, fields, param, message):
    answer = ask(fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert not scorer.seen


def test_streams_of_pt_are_asked_for_and_join_in_one_entry(ask, scorer):
    body = {"input": [[5, 6, 7], [5]], "response": [[3, 4], None], "output_co": True, "relative_reward": True}
    first, second = ask(body).json()["data"]
    assert first["output_co"] == second["output_co"] == pytest.approx(2 / 3)  # |3 - 1| against |1|
    assert (first["response"]["logps_ft"], first["response"]["logps_pt"]) == ([-4, -5], [-3, -4])
    assert "response" not in second
    assert sorted(scorer.seen) == [[5], [5], [5, 6, 7], [5, 6, 7, 3], [5, 6, 7, 3]]
    assert len(set(scorer.ids)) == 5
    plain = ask({"input": [5, 6, 7], "response": [3, 4]}).json()["data"][0]
    assert not {"output_co"} & set(plain)
    assert not {"logps_ft", "logps_pt"} & set(plain["response"])


def test_a_reward_needs_a_response(ask, scorer):
    answer = ask({"input": ["a", "b"], "relative_reward": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "relative_reward")
    assert not scorer.seen


def test_an_input_whose_norms_overflowed_costs_itself_only(ask):
    broken, fine = ask({"input": [[7, 6], [5, 6]]}).json()["data"]
    assert (
        broken["tuco"] is broken["preco"] is broken["cosine"] is broken["layers"]["cum_ptc_norms"][-1] is None
    )
    assert 0 < fine["tuco"] < 1


def test_an_unknown_model_is_not_found(ask):
    answer = ask({"model": "other", "input": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model `other` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


def test_inputs_are_scored_at_once(ask, scorer):
    assert len(ask({"input": [[5, 9]] * 30}).json()["data"]) == 30
    assert scorer.most == 30


def test_one_failure_ends_the_others(app, scorer):
    with pytest.raises(EngineError):
        TestClient(app).post("/v1/tuco/score", json={"input": [[5, 9], [8, 5], [5, 9]]})
    assert scorer.running == 0


def test_a_client_that_leaves_ends_the_work(app, scorer):
    async def go():
        body = json.dumps({"input": [[5, 9]] * 5}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not scorer.running:
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/tuco/score",
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }
        await asyncio.wait_for(app(scope, receive, send), 0.2)
        await asyncio.sleep(0.01)

    asyncio.run(go())
    assert (scorer.most, scorer.running) == (5, 0)
