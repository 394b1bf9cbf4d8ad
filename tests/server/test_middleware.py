"""Answers on their way back through the middleware, around a fake vLLM: whole, streamed, abandoned."""

import asyncio
import gc
import json
import math
import threading
import weakref
from functools import partial

import httpx
import numpy as np
import pytest
from prometheus_client import REGISTRY
from server.fake_vllm import FakeVllm, post, rows, tuco

from tuco_vllm.engine.score_feed import RECEIVER, ResponseScores, tuco_of_rows
from tuco_vllm.server import answers, metrics
from tuco_vllm.server.answers import ScoredAnswer
from tuco_vllm.server.middleware import TucoMiddleware
from tuco_vllm.server.wishes import Wish
from tuco_vllm.steering import LIMITS, Steering


def events(answer):
    """The events of a stream, parsed where they are JSON."""
    assert answer.text.endswith("\n\n")
    found = answer.text.removesuffix("\n\n").split("\n\n")
    return [json.loads(e.removeprefix("data: ")) if e.startswith("data: {") else e for e in found]


def chunks(answer, choice=0):
    listed = [e for e in events(answer) if isinstance(e, dict)]
    return [c for e in listed for c in e.get("choices", ()) if c["index"] == choice]


def test_an_answer_has_the_scores_of_each_choice():
    app = FakeVllm(tokens=5)
    answer = post(app, {"prompt": "p", "n": 3, "tuco": True})
    assert int(answer.headers["content-length"]) == len(answer.content)
    for choice in answer.json()["choices"]:
        expected = [tuco(choice["index"], token) for token in range(5)]
        assert choice["tuco"] == {"prompt": expected[0], "tokens": expected}
        assert choice["text"] == "xxxxx"


def test_layers_are_there_where_asked_for():
    [choice] = post(FakeVllm(tokens=2), {"tuco": "layers"}).json()["choices"]
    names = {"ptc_norms": 0, "ftc_norms": 1, "cum_ptc_norms": 2, "cum_ftc_norms": 3, "cosines": 6}
    assert [*choice["tuco"]["layers"]] == [*names]
    for name, column in names.items():
        assert choice["tuco"]["layers"][name] == rows(0, 2)[:, :, column].tolist()


def test_a_steered_answer_without_scores_is_not_touched():
    app = FakeVllm()
    assert post(app, {"alpha": 0.5}).content == post(app, {}).content


def test_an_echoed_prompt_has_its_score_and_no_tokens():
    [choice] = post(FakeVllm(tokens=1), {"tuco": True, "echo": True, "max_tokens": 0}).json()["choices"]
    assert choice["tuco"] == {"prompt": tuco(0, 0), "tokens": []}


def test_refusals_of_vllm_come_through_whole():
    answer = post(FakeVllm(), {"model": "other", "tuco": True})
    assert answer.status_code == 404
    assert answer.json() == {"error": {"message": "no such model", "code": 404}}


@pytest.mark.parametrize("pieces", [1, 7, 64, 10**6])
@pytest.mark.parametrize("ahead", [0, 2, 9])
def test_each_chunk_of_a_stream_has_its_tokens_scores(ahead, pieces):
    app = FakeVllm(tokens=5, ahead=ahead, pieces=pieces)
    answer = post(app, {"n": 2, "tuco": "layers", "stream": True})
    for choice in range(2):
        got = chunks(answer, choice)
        assert len(got) == 6
        assert "tuco" not in got[0]
        assert got[1]["tuco"]["prompt"] == tuco(choice, 0)
        assert not any("prompt" in chunk["tuco"] for chunk in got[2:])
        assert [c["tuco"]["tokens"] for c in got[1:]] == [[tuco(choice, token)] for token in range(5)]
        norms = [c["tuco"]["layers"]["cum_ftc_norms"] for c in got[1:]]
        assert norms == [[row] for row in rows(choice, 5)[:, :, 3].tolist()]
    assert events(answer)[0] == ": keep-alive"
    assert events(answer)[-1] == "data: [DONE]"


def test_a_scored_stream_is_the_plain_one_but_for_the_scores():
    for options in (None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
        body = {"stream": True} | ({"stream_options": options} if options else {})
        plain, scored = (
            events(post(FakeVllm(), {**body, **wish}, fingerprint="v")) for wish in ({}, {"tuco": True})
        )
        for event in scored:
            for choice in event["choices"] if isinstance(event, dict) else ():
                choice.pop("tuco", None)
        assert scored == plain


@pytest.mark.parametrize("tokens", [5, 400])
def test_long_answers_are_written_beside_the_event_loop(monkeypatch, tokens):
    writers = set()
    monkeypatch.setattr(
        answers, "tuco_of_rows", lambda rows: writers.add(threading.current_thread()) or tuco_of_rows(rows)
    )
    [choice] = post(FakeVllm(tokens), {"tuco": "layers"}).json()["choices"]
    assert choice["tuco"]["tokens"] == [tuco(0, token) for token in range(tokens)]
    assert choice["tuco"]["layers"]["cum_ptc_norms"] == rows(0, tokens)[:, :, 2].tolist()
    assert (threading.main_thread() in writers) == (tokens == 5)


def test_a_chunk_of_many_tokens_is_written_beside_the_event_loop(monkeypatch):
    """A client that reads slowly gets all that has come meanwhile in one; what follows stays behind it."""
    threads = []
    monkeypatch.setattr(answers, "_layers", lambda rows: threads.append(threading.current_thread()) or b"{}")
    scores = ResponseScores()
    scores.add(0, rows(0, 100), first_choice=True)
    answer = ScoredAnswer(scores, Wish(Steering(scored=True), b"", layers=True))
    chunks = [
        {"id": "a", "choices": [{"index": 0, "finish_reason": None}], "usage": {"completion_tokens": n}}
        for n in (90, 95, 100)
    ]
    out = asyncio.run(answer.stream(b"".join(b"data: %b\n\n" % json.dumps(c).encode() for c in chunks)))
    got = [json.loads(event.removeprefix(b"data: ")) for event in out.split(b"\n\n")[:-1]]
    assert [len(chunk["choices"][0]["tuco"]["tokens"]) for chunk in got] == [90, 5, 5]
    assert len(threads) == 3
    assert threading.main_thread() not in threads


def test_usage_stays_where_the_server_forces_it():
    answer = post(FakeVllm(), {"stream": True, "tuco": True}, force_usage=True)
    assert all("usage" in event for event in events(answer) if isinstance(event, dict))


def test_bad_stream_options_are_left_to_vllm():
    for options in ([], {"include_usage": "banana"}):
        app = FakeVllm()
        try:
            post(app, {"stream": True, "tuco": True, "stream_options": options})
        finally:
            assert app.requests[0]["stream_options"] == options


def test_an_error_within_a_stream_comes_through():
    app = FakeVllm(tokens=5)
    app.fails_at = 2
    answer = post(app, {"stream": True, "tuco": True})
    assert {"error": {"message": "the engine died", "code": 500}} in events(answer)
    assert events(answer)[-1] == "data: [DONE]"


# What is left behind: nothing.


@pytest.mark.parametrize("stream", [False, True])
def test_scores_go_with_their_response(stream):
    app = FakeVllm()
    post(app, {"stream": stream, "tuco": True})
    left = weakref.ref(app.receivers.pop())
    gc.collect()
    assert left() is None
    assert RECEIVER.get() is None


def test_a_client_that_leaves_leaves_nothing():
    """vLLM ends a request by cancelling it; steps under way still bring rows for it."""
    receivers = []

    async def endless(scope, receive, send):
        await receive()
        receivers.append(RECEIVER.get())
        await asyncio.sleep(3600)

    async def go():
        queue = [{"type": "http.request", "body": b'{"tuco": true}', "more_body": False}]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}

        async def receive():
            return queue.pop()

        task = asyncio.create_task(
            TucoMiddleware(endless, limits=LIMITS, model_name="m")(scope, receive, None)
        )
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        receivers[0].add(0, rows(0, 3), first_choice=True)
        return receivers[0].take(0)

    assert asyncio.run(go()) == (0, [])


def test_concurrent_requests_have_their_own_receiver():
    app = FakeVllm(tokens=3)

    async def go():
        transport = httpx.ASGITransport(TucoMiddleware(app, limits=LIMITS, model_name="m"))
        async with httpx.AsyncClient(transport=transport, base_url="http://tuco") as client:
            bodies = [{"tuco": True}, {"alpha": 0.5}, {}] * 8
            await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    asyncio.run(go())
    scored = [r for r in app.receivers if r is not None]
    assert len(scored) == len(set(map(id, scored))) == 8


def test_other_routes_and_protocols_are_not_looked_at():
    async def app(scope, receive, send):
        raise LookupError(scope["type"])

    for scope in (
        {"type": "lifespan"},
        {"type": "http", "method": "GET", "path": "/v1/completions"},
        {"type": "http", "method": "POST", "path": "/tokenize"},
    ):
        with pytest.raises(LookupError):
            asyncio.run(TucoMiddleware(app, limits=LIMITS, model_name="m")(scope, None, None))


def test_metrics_count_what_was_answered():
    names = ("scored_requests_total", "steered_requests_total", "alpha_sum", "prompt_tuco_count")
    metrics.show("m")

    def values():
        return [REGISTRY.get_sample_value(f"tuco:{name}", {"model_name": "m"}) for name in names]

    before = values()
    post(FakeVllm(), {"alpha": 0.5, "tuco": True, "n": 3})
    post(FakeVllm(), {"alpha": 0.25})
    post(FakeVllm(), {"tuco": True})
    post(FakeVllm(), {})
    post(FakeVllm(), {"alpha": 7})
    post(FakeVllm(), {"alpha": 0.5, "model": "other"})
    assert [b - a for a, b in zip(before, values(), strict=True)] == [2, 2, 1.75, 2]


def test_rows_of_a_closed_response_are_dropped():
    scores = ResponseScores()
    scores.add(0, rows(0, 2), first_choice=True)
    scores.close()
    scores.add(0, rows(0, 2), first_choice=True)
    assert scores.take(0) == (0, [])


def test_scores_that_are_not_finite_are_null_and_not_counted():
    """A model that overflows: NaN is no JSON, and would stay in the histogram's sum."""
    broken = rows(0, 2)
    broken[1, -1, 2:] = np.inf
    metrics.show("overflowing")
    scores = ResponseScores(partial(metrics.observe_prompt, "overflowing"))
    scores.add(0, broken[1:], first_choice=True)
    scores.add(0, broken[:1], first_choice=False)
    wish = Wish(Steering(scored=True), b"", layers=True)
    body = json.dumps({"id": "cmpl-1", "choices": [{"index": 0}]}).encode()
    answer = asyncio.run(ScoredAnswer(scores, wish).whole(body))
    [choice] = json.loads(answer, parse_constant=pytest.fail)["choices"]
    assert choice["tuco"]["prompt"] is None
    assert choice["tuco"]["tokens"] == [None, tuco(0, 0)]
    assert choice["tuco"]["layers"]["cum_ftc_norms"][0][-1] is None
    assert math.isfinite(REGISTRY.get_sample_value("tuco:prompt_tuco_sum", {"model_name": "overflowing"}))
