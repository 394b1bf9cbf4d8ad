"""alpha and tuco around a fake vLLM: what it is handed, what comes back, and what must not be touched."""

import asyncio
import gc
import json
import weakref

import httpx
import pytest
from server.fake_vllm import FakeVllm, rows, tuco

from tuco_vllm.engine.score_feed import RECEIVER, ResponseScores
from tuco_vllm.server import metrics
from tuco_vllm.server.middleware import GENERATING, STEERABLE, TucoMiddleware

NAN, INFINITY = float("nan"), float("inf")
BAD_ALPHAS = [NAN, INFINITY, -INFINITY, -0.5, -1e-9, 2.0001, 3, 10**400, "0.5", "", True, False, [1.0], {}]
BAD_TUCOS = ["layer", "true", "", 1, 0, 1.0, [True], {"layers": True}]


def post(app, body, path="/v1/completions", **options):
    """One request through the middleware; ``body`` as JSON, NaN and infinity in Python's spelling."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def go():
        transport = httpx.ASGITransport(TucoMiddleware(app, max_alpha=2.0, **options))
        async with httpx.AsyncClient(transport=transport, base_url="http://tuco") as client:
            return await client.post(path, content=content)

    return asyncio.run(go())


def events(answer):
    """The events of a stream, parsed where they are JSON."""
    assert answer.text.endswith("\n\n")
    found = answer.text.removesuffix("\n\n").split("\n\n")
    return [json.loads(e.removeprefix("data: ")) if e.startswith("data: {") else e for e in found]


def chunks(answer, choice=0):
    listed = [e for e in events(answer) if isinstance(e, dict)]
    return [c for e in listed for c in e.get("choices", ()) if c["index"] == choice]


# What vLLM is handed.


@pytest.mark.parametrize("path", STEERABLE)
@pytest.mark.parametrize(
    ("fields", "handed"),
    [
        ({"alpha": 0.5}, {"alpha": 0.5}),
        ({"alpha": 0}, {"alpha": 0.0}),
        ({"alpha": 1, "tuco": True}, {"alpha": 1.0, "tuco": "layers"}),
        ({"tuco": "layers"}, {"alpha": 1.0, "tuco": "layers"}),
        ({"vllm_xargs": {"alpha": 1.5, "other": 7}}, {"alpha": 1.5, "other": 7}),
        ({"alpha": 1.5, "vllm_xargs": {"alpha": 1.5}}, {"alpha": 1.5}),
        ({"vllm_xargs": {"tuco": True}}, {"alpha": 1.0, "tuco": "layers"}),
        ({"alpha": None, "tuco": "layers", "vllm_xargs": None}, {"alpha": 1.0, "tuco": "layers"}),
        ({"alpha": 1.0}, None),
        ({"vllm_xargs": {"alpha": 1, "other": 7}}, {"other": 7}),
        ({"alpha": 1, "tuco": False}, None),
        ({"alpha": None, "tuco": None}, None),
    ],
)
def test_wishes_reach_vllm_in_its_own_field(path, fields, handed):
    app = FakeVllm()
    assert post(app, {"prompt": "p", **fields}, path).status_code == 200
    request = app.requests[0]
    assert request.get("vllm_xargs") == handed
    assert {"alpha", "tuco"}.isdisjoint(request)
    assert request["prompt"] == "p"
    if handed and "alpha" in handed:
        assert type(handed["alpha"]) is type(request["vllm_xargs"]["alpha"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":   "p", "temperature": NaN}',
        b'{"prompt": "the \\"alpha\\" and the omega"}',
        b'{"prompt": "caf\\u00e9", "n": 1}',
        b'{"messages": [{"alpha": 3}], "vllm_xargs": {"k": "v"}}',
    ],
)
def test_other_requests_go_through_byte_by_byte(body):
    app = FakeVllm()
    answer = post(app, body)
    assert app.bodies == [body]
    assert app.receivers == [None]
    assert "tuco" not in answer.text


@pytest.mark.parametrize(
    "body",
    [b'{"\\u0061lpha": 0.5}', json.dumps({"alpha": 0.5}).encode("utf-16"), b'{"alpha": 9, "alpha": 0.5}'],
)
def test_however_the_name_is_spelt(body):
    app = FakeVllm()
    post(app, body)
    assert app.requests[0]["vllm_xargs"] == {"alpha": 0.5}


@pytest.mark.parametrize("body", [b'{"alpha": ', b'["alpha", 3]', b'{"alpha": 1} "tuco"', b'"alpha"'])
def test_what_is_no_json_object_is_left_to_vllm(body):
    app = FakeVllm()
    with pytest.raises((ValueError, AttributeError)):  # the fake does not take it
        post(app, body)
    assert app.bodies == [body]


# Refusals.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("field", "value"), [*(("alpha", v) for v in BAD_ALPHAS), *(("tuco", v) for v in BAD_TUCOS)]
)
def test_bad_values_are_refused_by_name(field, value, nested, stream):
    app = FakeVllm()
    body = {"prompt": "p", "stream": stream} | ({"vllm_xargs": {field: value}} if nested else {field: value})
    answer = post(app, body)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400
    assert (error["type"], error["param"]) == ("BadRequestError", field)
    assert field in error["message"]
    assert len(error["message"]) < 200
    assert not app.bodies


def test_a_number_beyond_all_floats_is_refused():
    assert post(FakeVllm(), b'{"alpha": 1e999}').json()["error"]["param"] == "alpha"
    assert post(FakeVllm(), b'{"alpha": ' + b"[" * 10**5 + b"]" * 10**5 + b"}").status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"alpha": 0.5, "vllm_xargs": {"alpha": 0.6}}, "alpha"),
        ({"tuco": True, "vllm_xargs": {"tuco": "layers"}}, "tuco"),
        ({"alpha": 0.5, "vllm_xargs": 5}, "vllm_xargs"),
        ({"alpha": 0.5, "use_beam_search": True}, "use_beam_search"),
        ({"tuco": True, "use_beam_search": True}, "use_beam_search"),
    ],
)
def test_contradictions_are_refused(body, param):
    app = FakeVllm()
    assert post(app, body).json()["error"]["param"] == param
    assert not app.bodies
    assert post(app, {"alpha": 1.0, "use_beam_search": True}).status_code == 200


@pytest.mark.parametrize("path", GENERATING)
def test_routes_that_cannot_steer_say_so(path):
    app = FakeVllm()
    for body in ({"alpha": 0.5}, {"tuco": True}, {"vllm_xargs": {"alpha": NAN}}):
        assert post(app, body, path).status_code == 400
    assert not app.bodies
    plain = b'{"prompt":  "p"}'
    assert post(app, plain, path).status_code == 200
    assert app.bodies == [plain]


# What comes back.


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
    names = ("ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms")
    assert tuple(choice["tuco"]["layers"]) == names
    for column, name in enumerate(names):
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

        task = asyncio.create_task(TucoMiddleware(endless, max_alpha=2.0)(scope, receive, None))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        receivers[0].add(0, rows(0, 3), first_choice=True)
        return receivers[0].take(0)

    assert asyncio.run(go()) == (0, [])


def test_concurrent_requests_have_their_own_receiver():
    app = FakeVllm(tokens=3)

    async def go():
        transport = httpx.ASGITransport(TucoMiddleware(app, max_alpha=2.0))
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
            asyncio.run(TucoMiddleware(app, max_alpha=2.0)(scope, None, None))


def test_metrics_count_what_was_answered():
    def values():
        return (
            metrics.SCORED._value.get(),
            metrics.STEERED._value.get(),
            metrics.ALPHA._sum.get(),
            sum(bucket.get() for bucket in metrics.PROMPT_TUCO._buckets),
        )

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
