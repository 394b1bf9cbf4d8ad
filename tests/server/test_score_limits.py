"""POST /v1/tuco/score under requests that are too large, too many or gone: others do not notice."""

import asyncio
import json
import threading
import tracemalloc
from itertools import pairwise

import httpx
import pytest
import tiny_models
from fastapi import FastAPI
from fastapi.testclient import TestClient
from server.test_score_route import CHAT, JSON, LIMIT, Scorer
from starlette.requests import Request

from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.server import metrics, score_body
from tuco_vllm.server.score import ScoreService, router

PATH = "/v1/tuco/score"


class Slow(PromptEncoder):
    """Takes a turn's time for every prompt, and says which it has begun."""

    begun: list
    gate = threading.Event()

    def encode(self, prompt):
        self.begun.append(prompt[:1])
        self.gate.wait(0.03)
        return super().encode(prompt)


@pytest.fixture
def scorer():
    return Scorer()


@pytest.fixture
def encoder():
    encoder = Slow(tiny_models.tokenizer(), max_model_len=LIMIT)
    encoder.begun = []
    return encoder


@pytest.fixture
def app(scorer, encoder):
    app = FastAPI()
    app.state.tuco = ScoreService(scorer, encoder, ["m"])
    app.include_router(router)
    return app


def scope(*headers):
    headers = [(b"content-type", b"application/json"), *headers]
    return {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}


async def nowhere(message):
    pass


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_other_types_than_json_are_refused(app, scorer, kind):
    """vLLM's own check, whose error a browser's form or an unasked fetch would get."""
    answer = TestClient(app).post(PATH, content=b'{"input": "a"}', headers={"content-type": kind})
    assert answer.status_code == 422  # vLLM's handlers make 400 of it
    assert "Only 'application/json' is allowed" in answer.text
    assert not scorer.seen


def test_a_body_over_the_limit_is_read_but_never_held(app):
    limit, piece = score_body._MOST_BYTES, 1 << 20
    sent = iter(range(4 * limit // piece))

    async def receive():
        more = next(sent, None) is not None
        return {"type": "http.request", "body": bytes(piece), "more_body": more}

    messages = []

    async def send(message):
        messages.append(message)

    tracemalloc.start()
    try:
        asyncio.run(app(scope(), receive, send))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert messages[0]["status"] == 413
    assert json.loads(messages[1]["body"])["error"]["param"] == "body"
    assert peak < 1.5 * limit
    assert next(sent, None) is None  # a client that still sends would not see an answer


@pytest.mark.parametrize(
    ("value", "most"),
    [
        (b"1", 1_750_000),
        (b'"a"', 1_750_000),
        (b"[]", 300_000),
        (b"[[[[]]]]", 85_000),
        (b"{}", 300_000),
        (b'{"a":0}', 160_000),
        (b'{"a":0,"b":0}', 110_000),
    ],
)
def test_more_values_than_are_parsed_at_once_are_refused(app, scorer, value, most):
    """Of each kind at most so many as take the event loop less than 0.2 seconds."""
    body = b'{"input": [' + value + (b"," + value) * most + b"]}"
    answer = TestClient(app).post(PATH, content=body, headers=JSON)
    assert answer.status_code == 413
    assert "send several requests" in answer.text
    assert not scorer.seen


def test_the_longest_prompts_of_token_ids_fit():
    prompts = [[100_000] * 1500] * 1024
    messages = [{"type": "http.request", "body": json.dumps({"input": prompts}).encode()}]

    async def receive():
        return messages.pop()

    assert asyncio.run(score_body.read_body(Request(scope(), receive))) == {"input": prompts}


def test_the_number_of_inputs_is_vllms(app, monkeypatch):
    monkeypatch.setenv("VLLM_MAX_COMPLETION_PROMPTS", "3")
    client = TestClient(app)
    assert client.post(PATH, json={"input": ["a"] * 3}).status_code == 200
    assert client.post(PATH, json={"input": ["a"] * 4}).status_code == 400
    assert client.post(PATH, json={"input": [5] * 4}).status_code == 200


def test_prompts_of_two_requests_take_turns(app, encoder):
    async def go():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tuco") as client:
            large = asyncio.create_task(client.post(PATH, json={"input": ["large"] * 20}))
            while not encoder.begun:
                await asyncio.sleep(0.001)
            await client.post(PATH, json={"input": "small"})
            assert not large.done()
            await large

    asyncio.run(go())
    assert encoder.begun.index("s") <= 3


def test_the_loop_goes_on_while_prompts_are_handed_over(app, scorer):
    """Between any two of the engine's slices there is a turn for others."""
    app.state.tuco._encoder = PromptEncoder(tiny_models.tokenizer(), max_model_len=LIMIT)
    running = []

    async def go():
        async def watch():
            while True:
                running.append(len(scorer.seen))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tuco") as client:
            assert (await client.post(PATH, json={"input": [[5, 6]] * 500})).status_code == 200
        watching.cancel()

    asyncio.run(go())
    assert max(after - before for before, after in pairwise(running)) <= 64


def test_a_client_that_leaves_ends_the_encoding(app, encoder, scorer):
    async def go():
        body = json.dumps({"input": ["large"] * 200}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while len(encoder.begun) < 2:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        await app(scope(), receive, nowhere)
        await asyncio.sleep(0.3)

    asyncio.run(go())
    assert len(encoder.begun) < 8
    assert not scorer.seen


def test_a_client_that_leaves_while_it_sends_is_no_failure(app):
    async def receive():
        return {"type": "http.disconnect"}

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope(), receive, send))
    assert sent[0]["status"] == 499


# Instruments.


def test_the_clients_name_and_priority_reach_the_engine(app, scorer):
    client = TestClient(app)
    answer = client.post(PATH, json={"input": ["a", "b"], "priority": -3}, headers={"X-Request-Id": "mine"})
    assert answer.json()["id"] == "tuco-mine"
    assert sorted(scorer.ids) == ["tuco-mine-0", "tuco-mine-1"]
    assert scorer.priorities == {-3}


def test_the_load_is_counted_while_it_lasts(app, scorer):
    loads = []
    app.state.enable_server_load_tracking = True
    inner = scorer.score

    async def score(*arguments):
        loads.append(app.state.server_load_metrics)
        return await inner(*arguments)

    scorer.score = score
    client = TestClient(app)
    for body in ({"input": "a"}, {"input": ""}, {"input": ["a", "b"]}):
        client.post(PATH, json=body)
        loads.append(app.state.server_load_metrics)
    assert loads == [1, 0, 0, 1, 1, 0]


def test_time_and_errors_are_counted(app):
    def values():
        errors = [metrics.SCORE_ERRORS.labels("m", status)._value.get() for status in ("400", "404", "500")]
        return [sum(bucket.get() for bucket in metrics.SCORE_SECONDS.labels("m")._buckets), *errors]

    before, client = values(), TestClient(app)
    for body in ({"input": "a"}, {"input": ""}, {"input": "a", "model": "other"}, {"input": "a", "x": 1}):
        client.post(PATH, json=body)
    assert [b - a for a, b in zip(before, values(), strict=True)] == [4, 2, 1, 0]


def test_the_schema_is_that_of_the_route(app):
    listed = app.openapi()
    route = listed["paths"][PATH]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    asked = {"input", "response", "trace", "output_co", "relative_reward"}
    assert set(body["properties"]) == asked | {"model", "layers", "priority", "user"}
    assert (body["required"], body["additionalProperties"]) == (["input"], False)
    assert route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/ScoreAnswer")
    for value in ("the cat", [5, 6], CHAT, ["the cat", CHAT]):
        score_body.ScoreBody(input=value)
        answer = TestClient(app).post(
            PATH, json={"input": value, "trace": value == "the cat", "output_co": value == CHAT}
        )
        assert (
            score_body.ScoreAnswer.model_validate(answer.json()).model_dump(exclude_unset=True)
            == answer.json()
        )
