"""Verdicts by a calibration, around a fake vLLM: in answers, in counters, and none where none can be."""

import asyncio
import json

import pytest
from prometheus_client import REGISTRY
from server.fake_vllm import FakeVllm, post, tuco
from server.flags import BUCKETS, CHATS, checker, flags
from server.test_middleware import chunks

from tuco_vllm.engine.score_feed import RECEIVER, ask_for_scores
from tuco_vllm.errors import InputError
from tuco_vllm.flagging import Bucket
from tuco_vllm.server import metrics
from tuco_vllm.server.middleware import TucoMiddleware
from tuco_vllm.steering import LIMITS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def counted(name):
    """(checked, flagged) so far of the model that metrics call ``name``."""
    metrics.show(name, flags=True)
    return tuple(
        REGISTRY.get_sample_value(f"tuco:{what}_total", {"model_name": name})
        for what in ("checked", "flagged")
    )


def judged(app, body, path=COMPLETIONS, **changes):
    """The answer, and how many responses were checked and flagged for it."""
    before = counted("judged")
    answer = post(app, body, path, checker=checker("judged", **changes))
    return answer, tuple(b - a for a, b in zip(before, counted("judged"), strict=True))


def test_who_asks_for_scores_is_told():
    answer, counts = judged(FakeVllm(tokens=5), {"prompt": "p", "n": 3, "tuco": True})
    assert counts == (3, 1)
    for choice in answer.json()["choices"]:
        expected = [tuco(choice["index"], token) for token in range(5)]
        told = {"prompt": expected[0], "flagged": choice["index"] == 0, "tokens": expected}
        assert choice["tuco"] == told


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("body", [b'{"prompt":  "p", "n": 2}', b'{"prompt": "p", "n": 2,  "stream": true}'])
def test_who_does_not_ask_is_counted_and_nothing_else(body, path):
    app = FakeVllm()
    answer, counts = judged(app, body, path)
    assert counts == (2, 1)
    assert app.bodies == [body]
    assert answer.content == post(FakeVllm(), body, path).content
    assert app.receivers[0] is not None
    assert app.receivers[0].waiting == 0
    assert RECEIVER.get() is None


@pytest.mark.parametrize("ahead", [0, 2, 9])
@pytest.mark.parametrize(("column", "place"), [("tuco", 1), ("response_tuco", 5)])
def test_a_stream_says_it_when_it_is_known(ahead, column, place):
    threshold = {"templates": {None: (Bucket(5, 20, 0.501),)}, "column": column}
    app = FakeVllm(tokens=5, ahead=ahead)
    answer, counts = judged(app, {"n": 2, "tuco": True, "stream": True}, **threshold)
    assert counts == (2, 1)
    for choice in range(2):
        got = chunks(answer, choice)
        said = [chunk["tuco"].get("flagged", "no") if "tuco" in chunk else "no" for chunk in got]
        assert said == ["no"] * place + [choice == 0] + ["no"] * (5 - place)
        assert [t for chunk in got[1:] for t in chunk["tuco"]["tokens"]] == [
            tuco(choice, n) for n in range(5)
        ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_judged_by_its_mean(stream):
    mean = sum(tuco(0, token) for token in range(5)) / 5
    for threshold, flagged in ((mean - 1e-6, True), (mean + 1e-6, False)):
        told = {"column": "response_tuco", "templates": {None: (Bucket(5, 20, threshold),)}}
        answer, counts = judged(FakeVllm(tokens=5), {"tuco": True, "stream": stream}, **told)
        last = chunks(answer)[-1] if stream else answer.json()["choices"][0]
        assert last["tuco"]["flagged"] is flagged
        assert counts == (1, flagged)
    answer, counts = judged(FakeVllm(tokens=1), {"tuco": True, "echo": True, "max_tokens": 0}, **told)
    assert answer.json()["choices"][0]["tuco"]["flagged"] is None
    assert counts == (0, 0)


def test_a_finish_that_brings_no_token_still_says_it():
    from tuco_vllm.engine.score_feed import ResponseScores
    from tuco_vllm.server.answers import ScoredAnswer
    from tuco_vllm.server.wishes import Wish
    from tuco_vllm.steering import Steering

    checks = checker(column="response_tuco").checks(COMPLETIONS, b"{}")
    answer = ScoredAnswer(ResponseScores(), Wish(Steering(scored=True), b""), checks=checks)
    end = (
        b'data: {"id":"a","choices":[{"index":0,"finish_reason":"stop"}],"usage":{"completion_tokens":0}}\n\n'
    )
    [choice] = json.loads(asyncio.run(answer.stream(end)).removeprefix(b"data: "))["choices"]
    assert choice["tuco"] == {"flagged": None, "tokens": []}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"alpha": 0.5}),
        (COMPLETIONS, {"alpha": {"value": 0.5, "layers": [0, 1]}}),
        (COMPLETIONS, {"vllm_xargs": {"alpha": 0.5}}),
        (COMPLETIONS, {"add_special_tokens": False}),
        (CHAT, {"chat_template": "x"}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}),
        (CHAT, {"add_generation_prompt": False}),
        (CHAT, {"continue_final_message": True}),
        (CHAT, {"documents": [{"title": "x"}]}),
        (CHAT, {"reasoning_effort": "none"}),
        (CHAT, {"reasoning_effort": "high"}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (CHAT, {"add_special_tokens": True}),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_what_was_not_calibrated_has_no_verdict(path, body, asked):
    app = FakeVllm()
    answer, counts = judged(app, {**body, **({"tuco": True} if asked else {})}, path)
    assert counts == (0, 0)
    [choice] = answer.json()["choices"]
    if asked:
        assert choice["tuco"]["flagged"] is None
    else:
        assert "tuco" not in choice
        assert app.receivers == [None]  # it would be scored for nothing


@pytest.mark.parametrize(("length", "verdict"), [(4, None), (5, True), (20, True), (21, None), (None, None)])
def test_a_length_without_a_threshold_has_no_verdict(length, verdict):
    answer, counts = judged(FakeVllm(prompt_tokens=length), {"tuco": True})
    assert answer.json()["choices"][0]["tuco"]["flagged"] is verdict
    assert counts == ((0, 0) if verdict is None else (1, 1))


def test_chats_and_raw_prompts_have_thresholds_of_their_own():
    templates = {CHATS: BUCKETS, None: (Bucket(1, 99, 0.9),)}
    for path, body, counts in (
        (CHAT, {"model": "m"}, (1, 1)),
        (COMPLETIONS, {}, (1, 0)),
        ("/v1/chat/completions/batch", {}, (1, 1)),
        ("/v1/responses", {"input": "x"}, (1, 1)),
        ("/v1/messages", {}, (1, 1)),
        ("/invocations", {"messages": []}, (1, 1)),
        ("/invocations", {"prompt": "x"}, (1, 0)),
        ("/inference/v1/generate", {}, (1, 0)),
        ("/generative_scoring", {}, (0, 0)),
        ("/v1/completions/render", {}, (0, 0)),
        (COMPLETIONS, {"use_beam_search": True}, (0, 0)),
    ):
        assert judged(FakeVllm(), body, path, templates=templates)[1] == counts, path
    for path, template in ((CHAT, None), (COMPLETIONS, CHATS)):
        app = FakeVllm()
        assert judged(app, {}, path, templates={template: BUCKETS})[1] == (0, 0)
        assert app.receivers == [None]


def test_another_model_has_no_verdict():
    checks = [
        checker().checks(COMPLETIONS, json.dumps({"model": name}).encode())
        for name in ("alias", "", "x", ["m"])
    ]
    assert [each.judging for each in checks] == [True, True, False, False]
    for body in (b"", b"[]", b"not JSON", b"[" * 100_000):
        assert not checker().checks(COMPLETIONS, body).judging


def test_engine_requests_of_one_answer_are_judged_each():
    """The batch route's all have choice 0, and a loop of tool calls makes several."""
    from server.fake_vllm import rows

    before = counted("each")
    checks = checker("each").checks(CHAT, b"{}")
    for request in ("a", "b", "a"):
        checks.add(request, 0, 10, rows(0, 2))
    checks.add("c", 0, 10, rows(1, 1))
    checks.count()
    checks.count()
    assert tuple(b - a for a, b in zip(before, counted("each"), strict=True)) == (3, 2)


def test_a_client_that_leaves_is_counted_by_what_it_got():
    waiting = []
    before = counted("gone")

    async def endless(scope, receive, send):
        from server.fake_vllm import rows

        RECEIVER.get().add(0, rows(0, 1), first_choice=True, request="a", tokens=10)
        waiting.append(RECEIVER.get().waiting)
        await asyncio.sleep(3600)

    async def go():
        queue = [{"type": "http.request", "body": b"{}", "more_body": False}]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}

        async def receive():
            return queue.pop()

        app = TucoMiddleware(endless, limits=LIMITS, model_name="gone", checker=checker("gone"))
        task = asyncio.create_task(app(scope, receive, None))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    assert waiting == [0]  # rows that nobody will take
    assert tuple(b - a for a, b in zip(before, counted("gone"), strict=True)) == (1, 1)


def test_a_score_that_is_not_finite_has_no_verdict():
    import numpy as np
    from server.fake_vllm import rows

    broken = rows(0, 1)
    broken[0, -1, 2:] = np.inf
    for column in ("tuco", "response_tuco"):
        checks = checker(column=column).checks(COMPLETIONS, b"{}")
        checks.add("a", 0, 10, broken)
        assert checks.verdict(0) is None


def test_only_what_is_watched_is_scored():
    vllm = pytest.importorskip("vllm")
    seen = []

    class Engine:
        def generate(self, prompt, sampling_params, request_id, **more):
            seen.append((prompt, sampling_params.extra_args, request_id, more))

    engine = Engine()
    ask_for_scores(engine)
    plain, asking = vllm.SamplingParams(), vllm.SamplingParams(extra_args={"tuco": "layers", "x": 1})
    engine.generate("p", plain, "a", priority=3)
    token = RECEIVER.set(object())
    for params in (plain, asking, vllm.SamplingParams(extra_args={"tuco": False, "x": 1})):
        engine.generate("p", params, "a")
    RECEIVER.reset(token)
    assert seen[0] == ("p", None, "a", {"priority": 3})
    extras = [extra for _, extra, *_ in seen[1:]]
    assert extras == [{"tuco": True}, {"tuco": "layers", "x": 1}, {"tuco": True, "x": 1}]
    assert plain.extra_args is None


def test_what_is_never_judged_is_told():
    assert checker().warnings() == []
    [chats] = checker(templates={None: BUCKETS}).warnings()
    [raw] = checker(templates={CHATS: BUCKETS}).warnings()
    assert chats.startswith("chats, whose template is another, are not judged")
    assert raw.startswith("raw prompts are not judged")
    with pytest.raises(InputError, match="chats through another template than this server's"):
        checker(templates={"other": BUCKETS}).warnings()
    assert flags().flagged("", 10, 0.9) is None
