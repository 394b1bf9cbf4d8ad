"""`tuco serve` over HTTP: against the oracle, against itself in other shapes, and against bad requests."""

import asyncio
import json
import time
from contextlib import suppress

import httpx
import numpy as np
import openai
import pytest
import steered
import tolerances
from server.served import KEY, MODEL

from tuco_vllm.records import LAYERS

GREEDY = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, "return_token_ids": True}
CHAT = [{"role": "user", "content": "the cat sat on the mat"}]


def norms(tuco):
    """``[n, L, 7]`` of an answer's layers."""
    return np.array([tuco["layers"][name] for name in LAYERS]).transpose(1, 2, 0)


def joined(chunks, choice=0):
    """A stream's scores of one choice, as an unstreamed answer has them."""
    parts = [c["tuco"] for chunk in chunks for c in chunk["choices"] if c["index"] == choice and "tuco" in c]
    assert "prompt" in parts[0]
    assert not any("prompt" in part for part in parts[1:])
    whole = {"prompt": parts[0]["prompt"], "tokens": [value for part in parts for value in part["tokens"]]}
    if "layers" in parts[0]:
        whole["layers"] = {n: [row for part in parts for row in part["layers"][n]] for n in LAYERS}
    return whole


def assert_alike(a, b):
    assert len(a["tokens"]) == len(b["tokens"])
    assert a["tokens"] == pytest.approx(b["tokens"], abs=tolerances.TUCO_FLOAT32)
    assert (a["prompt"], b["prompt"]) == (a["tokens"][0], b["tokens"][0])


def test_completions_are_the_oracles(server):
    prompts, alphas = steered.requests(8, seed=20)
    for prompt, alpha in zip(prompts, alphas, strict=True):
        [choice] = server.complete(prompt=prompt, alpha=alpha, tuco="layers", **GREEDY)["choices"]
        steered.assert_true(server.pair, prompt, alpha, choice["token_ids"], norms(choice["tuco"]))
        last = norms(choice["tuco"])[:, -1]
        assert choice["tuco"]["tokens"] == pytest.approx(last[:, 3] / (last[:, 2] + last[:, 3]))
        assert choice["tuco"]["prompt"] == choice["tuco"]["tokens"][0]
        assert choice["routed_experts"] is None


def test_an_alpha_by_layers_in_either_place(server):
    prompt = steered.prompts(2, longest=40, seed=30)[1]
    for alpha in steered.RANGED:
        for fields in ({"alpha": alpha}, {"vllm_xargs": {"alpha": alpha}}):
            [choice] = server.complete(prompt=prompt, **fields, **GREEDY)["choices"]
            steered.assert_greedy(server.pair, prompt, alpha, choice["token_ids"])
    beyond = {"prompt": prompt, "alpha": steered.in_layers(0.5, 0, 3)}
    refusal = server.post("/v1/completions", beyond)
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "alpha")
    assert refusal.json()["error"]["message"].startswith("alpha.layers must end at 2: there are 3 layers")


def test_lists_of_prompts_and_samples(server):
    prompts = steered.prompts(3, longest=40, seed=21)
    sampled = {"max_tokens": 6, "temperature": 1.0, "seed": 3, "n": 2, "ignore_eos": True}
    choices = server.complete(prompt=prompts, tuco="layers", alpha=0.5, return_token_ids=True, **sampled)[
        "choices"
    ]
    assert [choice["index"] for choice in choices] == list(range(6))
    for choice in choices:
        prompt = prompts[choice["index"] // 2]
        steered.assert_scored(server.pair, prompt, 0.5, choice["token_ids"], norms(choice["tuco"]))
    streamed = server.stream(prompt=prompts, tuco="layers", alpha=0.5, return_token_ids=True, **sampled)
    for choice in choices:
        assert_alike(joined(streamed, choice["index"]), choice["tuco"])


def test_a_streams_chunks_are_the_answer(server):
    prompt = steered.prompts(2, longest=90, seed=22)[1]
    [choice] = server.complete(prompt=prompt, tuco="layers", alpha=1.25, **GREEDY)["choices"]
    chunks = server.stream(prompt=prompt, tuco="layers", alpha=1.25, **GREEDY)
    assert_alike(joined(chunks), choice["tuco"])
    for chunk in chunks:
        assert "usage" not in chunk
        [part] = chunk["choices"]
        assert len(part.get("tuco", {"tokens": []})["tokens"]) == len(part["token_ids"])
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]


def test_scores_change_nothing_else(server):
    prompt = steered.prompts(2, seed=23)[1]
    for path, body in (
        ("/v1/completions", {"prompt": prompt, **GREEDY}),
        ("/v1/completions", {"prompt": prompt, **GREEDY, "logprobs": 2, "echo": True}),
        ("/v1/chat/completions", {"messages": CHAT, **GREEDY}),
        ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 5, "temperature": 0, "logprobs": True}),
    ):
        for stream in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
            answers = []
            for wish in ({}, {"tuco": True}):
                text = server.post(path, {**body, **stream, **wish}).text
                events = [e.removeprefix("data: ") for e in text.strip().split("\n\n")]
                found = [json.loads(event) for event in events if event.startswith("{")]
                for part in found:
                    part["id"] = part["created"] = None
                    for choice in part["choices"]:
                        choice.pop("tuco", None)
                        choice.pop("logprobs", None) if stream else None  # rounding, of other batches
                        choice["logprobs"] = None
                answers.append(found)
            if stream:  # how many tokens share a chunk is a matter of time
                answers = [[set(found[0]), set(found[-1]), found[-1].get("usage")] for found in answers]
            assert answers[0] == answers[1]


@pytest.mark.parametrize("stream", [False, True])
def test_chats(server, stream):
    fields = {"messages": CHAT, "max_tokens": 6, "seed": 5, "n": 2, "tuco": True, "alpha": 0.75}
    answer = server.post("/v1/chat/completions", {"model": MODEL, **fields}).json()
    if stream:
        chunks = server.stream("/v1/chat/completions", **fields)
        for choice in answer["choices"]:
            assert_alike(joined(chunks, choice["index"]), choice["tuco"])
    else:
        plain = server.post("/v1/chat/completions", {"model": MODEL, **fields, "alpha": 1}).json()
        [scored] = server.post("/v1/tuco/score", {"input": CHAT}).json()["data"]
        assert plain["choices"][0]["tuco"]["prompt"] == pytest.approx(
            scored["tuco"], abs=tolerances.TUCO_FLOAT32
        )
        assert plain["choices"][0]["tuco"] != answer["choices"][0]["tuco"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_scores_where_they_cut_tokens(server, stream):
    prompt = steered.prompts(2, seed=24)[1]
    [whole] = server.complete(prompt=prompt, tuco=True, **GREEDY)["choices"]
    fields = {"prompt": prompt, "tuco": True, **GREEDY, "stop": [whole["text"][1:3]]}
    if stream:
        chunks = server.stream(**fields)
        tokens = [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]
        tuco = joined(chunks)
    else:
        [cut] = server.complete(**fields)["choices"]
        tokens, tuco = cut["token_ids"], cut["tuco"]
    assert len(tokens) == len(tuco["tokens"]) < 8
    assert tuco["tokens"] == pytest.approx(
        whole["tuco"]["tokens"][: len(tokens)], abs=tolerances.TUCO_FLOAT32
    )


def test_the_harness_asks_like_this(server):
    """lm-evaluation-harness, model type local-completions: prompts as token ids, echoed, with logprobs."""
    prompts = steered.prompts(3, longest=30, seed=25)
    body = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    for max_tokens in (1, 0):
        for choice in server.complete(**{**body, "max_tokens": max_tokens}, alpha=0.9, tuco=True)["choices"]:
            tokens = choice["logprobs"]["tokens"]
            assert len(tokens) == len(prompts[choice["index"]]) + max_tokens
            assert len(choice["tuco"]["tokens"]) == max_tokens
            assert 0 < choice["tuco"]["prompt"] < 1
    steered_logprobs, plain = (
        server.complete(**{**body, "prompt": prompts[1:2]}, alpha=alpha)["choices"][0]["logprobs"][
            "token_logprobs"
        ]
        for alpha in (0.0, 1.0)
    )
    assert steered_logprobs[1:] != pytest.approx(plain[1:], abs=1e-2)


def test_the_openai_client(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
    wish = {"alpha": 0.5, "tuco": True}
    options = {"model": MODEL, "max_tokens": 5, "temperature": 0.0}
    answer = client.completions.create(prompt="the cat", **options, extra_body=wish)
    chat = client.chat.completions.create(messages=CHAT, **options, extra_body=wish)
    streamed = list(client.completions.create(prompt="the cat", **options, stream=True, extra_body=wish))
    assert len(answer.choices[0].tuco["tokens"]) == answer.usage.completion_tokens
    assert chat.choices[0].tuco["prompt"] == chat.choices[0].tuco["tokens"][0]
    assert joined([c.model_dump() for c in streamed])["tokens"] == pytest.approx(
        answer.choices[0].tuco["tokens"], abs=tolerances.TUCO_FLOAT32
    )
    with pytest.raises(openai.BadRequestError, match="alpha must be a number from 0 to 2"):
        client.completions.create(prompt="the cat", **options, extra_body={"alpha": 3})
    named, by_path = client.models.list().data
    assert (named.id, by_path.id) == (answer.model, server.pair[1]) == (MODEL, server.pair[1])
    assert (
        named.tuco
        == by_path.tuco
        == {"pt": server.pair[0], "ft": server.pair[1], "min_alpha": 0.0, "max_alpha": 2.0}
    )

    async def chats():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            stream = await client.chat.completions.create(
                messages=CHAT, **options, stream=True, extra_body=wish
            )
            return [chunk.model_dump() async for chunk in stream]

    assert joined(asyncio.run(chats()))["tokens"] == pytest.approx(
        chat.choices[0].tuco["tokens"], abs=tolerances.TUCO_FLOAT32
    )


BAD = [float("nan"), float("inf"), float("-inf"), -0.1, 2.1, "1", True, [1]]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_name_the_field_and_harm_nothing(server, stream):
    cases = [(place, {"alpha": value}, "alpha") for value in BAD for place in ("request", "xargs")]
    cases += [(place, {"tuco": value}, "tuco") for value in ("all", 1) for place in ("request", "xargs")]
    cases += [("request", {"alpha": 0.5, "use_beam_search": True}, "use_beam_search")]
    for place, fields, name in cases:
        body = {"model": MODEL, "prompt": "a", "stream": stream}
        body |= {"vllm_xargs": fields} if place == "xargs" else fields
        answer = server.post("/v1/completions", body)
        assert answer.status_code == 400, (body, answer.text)
        assert name in answer.json()["error"]["message"]
    text = server.post("/v1/completions", {"prompt": "a"}).request.content
    with server.client() as client:
        big = text.replace(b"}", b', "alpha": 1e999}')
        answer = client.post("/v1/completions", content=big, headers={"content-type": "application/json"})
        assert answer.json()["error"]["param"] == "alpha"
    too_long = [5] * 300
    for body in ({"prompt": too_long, "tuco": True}, {"prompt": too_long, "alpha": 0.5}):
        assert server.post("/v1/completions", {**body, "stream": stream}).status_code == 400
    assert server.post("/v1/completions", {"model": "other", "prompt": "a", "tuco": True}).status_code == 404
    assert (
        len(server.complete(prompt="the cat", tuco=True, max_tokens=2)["choices"][0]["tuco"]["tokens"]) == 2
    )


def test_prompts_that_cannot_be_scored_are_named(server):
    too_long = server.post("/v1/tuco/score", {"input": [[5], [5] * 256]}).json()["error"]
    assert too_long["param"] == "input[1]"
    assert "the limit is 255" in too_long["message"]
    assert server.post("/v1/tuco/score", {"input": [[5] * 255]}).status_code == 200


def test_metrics_are_on_the_page(server):
    names = (
        "tuco:scored_requests_total",
        "tuco:steered_requests_total",
        "tuco:alpha_count",
        "tuco:prompt_tuco_count",
    )
    before = [server.metric(name) for name in names]
    server.complete(prompt=["a b", "c d"], alpha=0.5, tuco=True, n=2, max_tokens=2)
    server.post("/v1/tuco/score", {"input": ["a b", "c d", "e"]})
    server.complete(prompt="a b", max_tokens=2)
    assert [server.metric(name) - old for name, old in zip(names, before, strict=True)] == [2, 1, 1, 5]
    page = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in page.splitlines() if line.startswith(("tuco:", "vllm:num_requests_running"))]
    assert all(f'model_name="{MODEL}"' in line for line in lines)


def test_clients_that_leave_leave_nothing(server):
    long = {"model": MODEL, "max_tokens": 200, "ignore_eos": True, "tuco": "layers", "alpha": 0.5}

    async def leave():
        async with httpx.AsyncClient(
            base_url=server.url, headers={"authorization": f"Bearer {KEY}"}
        ) as client:

            async def streamed(prompt):
                body = {**long, "prompt": prompt, "stream": True}
                async with client.stream("POST", "/v1/completions", json=body) as answer:
                    async for _ in answer.aiter_bytes():
                        return

            async def whole(prompt, path="/v1/completions"):
                body = {**long, "prompt": prompt} if path == "/v1/completions" else {"input": prompt}
                with suppress(httpx.TimeoutException):
                    await client.post(path, json=body, timeout=0.05)

            prompts = steered.prompts(8, longest=50, seed=27)
            await asyncio.gather(
                *(go(prompt) for prompt in prompts for go in (streamed, whole)),
                whole([prompts[1]] * 200, "/v1/tuco/score"),
            )

    asyncio.run(leave())
    deadline = time.monotonic() + 30
    while server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < deadline, "requests of clients that have left are still running"
        time.sleep(0.2)
    test_completions_are_the_oracles(server)
