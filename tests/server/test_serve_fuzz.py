"""Many requests of every kind at once: none fails the server, none hangs, and all scores are their own.

The truth of each (prompt, alpha) is asked for beforehand, one request at a time, and held to the oracle.
"""

import asyncio
import json
import random
from contextlib import suppress

import httpx
import pytest
import steered
import tolerances
from server.served import KEY, MODEL, parsed
from server.test_serve import joined, norms

CLIENTS = 24
TOKENS = 6
ALPHAS = (0.0, 0.5, 1.0, 1.5)
GREEDY = {"model": MODEL, "temperature": 0.0, "ignore_eos": True}
BAD = (
    *({"alpha": value} for value in (float("nan"), float("inf"), -1, 2.5, "1", True, [], {}, 10**400)),
    *({"tuco": value} for value in (1, "all", [], {"a": 1})),
    *({"vllm_xargs": fields} for fields in ({"alpha": True}, {"alpha": float("nan")}, {"tuco": 1})),
    {"alpha": 0.5, "vllm_xargs": {"alpha": 0.25}},
    {"tuco": True, "use_beam_search": True},
    {"tuco": True, "prompt": [5] * 400, "messages": [{"role": "user", "content": "cat " * 400}]},
    {"tuco": True, "max_tokens": "many"},
    {"tuco": True, "stream_options": 5, "stream": True},
    {"alpha": 0.5, "n": -1},
)


class Truth:
    """Greedy completions of some prompts and chats under some alphas."""

    def __init__(self, server):
        self.prompts = steered.prompts(12, longest=60, seed=31)
        self.chats = [[{"role": "user", "content": "the cat sat on " * times}] for times in (1, 2, 5)]
        self.tuco = {}
        for alpha in ALPHAS:
            wish = {
                "alpha": alpha,
                "tuco": "layers",
                "max_tokens": TOKENS,
                "return_token_ids": True,
                **GREEDY,
            }
            for place, prompt in enumerate(self.prompts):
                [choice] = server.complete(prompt=prompt, **wish)["choices"]
                steered.assert_true(server.pair, prompt, alpha, choice["token_ids"], norms(choice["tuco"]))
                self.tuco["prompt", place, alpha] = choice["tuco"]["tokens"]
            for place, chat in enumerate(self.chats):
                answer = server.post("/v1/chat/completions", {"messages": chat, **wish}).json()
                [choice] = answer["choices"]
                self.tuco["chat", place, alpha] = choice["tuco"]["tokens"]

    def holds(self, key, tuco, count=None):
        """The scores are those of ``key``: all greedy tokens' (``count``), or the prompt's only (None)."""
        truth = self.tuco[key]
        if count is None:
            assert tuco["prompt"] == pytest.approx(truth[0], abs=tolerances.TUCO_FLOAT32)
        else:
            assert tuco["tokens"] == pytest.approx(truth[:count], abs=tolerances.TUCO_FLOAT32)


class Fuzzer:
    def __init__(self, truth, client, seed):
        self.truth, self.client, self.random = truth, client, random.Random(seed)
        self.counts = {}

    def draw(self):
        """One request, drawn in the order of the seed: a coroutine."""
        draw = self.random
        kinds = (self.completion, self.chat, self.score, self.plain, self.bad, self.leave)
        kind = draw.choices(kinds, weights=(8, 4, 3, 3, 4, 2))[0]
        self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1
        count = draw.randrange(1, TOKENS + 1)
        return kind(draw.random() < 0.5, draw.choice(ALPHAS), count, random.Random(draw.random()))

    async def post(self, path, body, status=200):
        headers = {"content-type": "application/json", "x-request-id": "the-same-for-all"}
        answer = await self.client.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code == status, (body, answer.text)
        return answer

    async def scored(self, path, body, stream, choices):
        """choice -> scores"""
        answer = await self.post(path, {**GREEDY, **body, "stream": stream})
        if stream:
            return {i: joined(parsed(answer.text), i) for i in range(choices)}
        return {choice["index"]: choice["tuco"] for choice in answer.json()["choices"]}

    async def completion(self, stream, alpha, count, draw):
        places = [draw.randrange(len(self.truth.prompts)) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
        n = draw.choice((1, 1, 2))
        sampled = draw.random() < 0.3
        body = {"prompt": [self.truth.prompts[p] for p in places], "max_tokens": count, "n": n}
        body |= {"temperature": 1.0, "seed": draw.randrange(99)} if sampled or n > 1 else {}
        body |= {"alpha": alpha, "tuco": draw.choice((True, "layers"))}
        scores = await self.scored("/v1/completions", body, stream, n * len(places))
        assert len(scores) == n * len(places)
        for choice, tuco in scores.items():
            assert len(tuco["tokens"]) == count
            key = ("prompt", places[choice // n], alpha)
            self.truth.holds(key, tuco, None if sampled or n > 1 else count)

    async def chat(self, stream, alpha, count, draw):
        place = draw.randrange(len(self.truth.chats))
        body = {"messages": self.truth.chats[place], "max_tokens": count}
        body["vllm_xargs"] = {"alpha": alpha, "tuco": "layers"}
        [tuco] = (await self.scored("/v1/chat/completions", body, stream, 1)).values()
        self.truth.holds(("chat", place, alpha), tuco, count)

    async def score(self, stream, alpha, count, draw):
        places = [draw.randrange(len(self.truth.prompts)) for _ in range(draw.randrange(1, 6))]
        body = {"input": [self.truth.prompts[p] for p in places], "layers": stream}
        data = (await self.post("/v1/tuco/score", body)).json()["data"]
        for place, entry in zip(places, data, strict=True):
            self.truth.holds(("prompt", place, 1.0), {"prompt": entry["tuco"]})

    async def plain(self, stream, alpha, count, draw):
        prompt = draw.choice(self.truth.prompts)
        wish = draw.choice(({}, {"alpha": alpha}))
        body = {"prompt": prompt, "max_tokens": count, "stream": stream, **GREEDY, **wish}
        assert "tuco" not in (await self.post("/v1/completions", body)).text

    async def bad(self, stream, alpha, count, draw):
        path, content = draw.choice(
            (
                ("/v1/completions", {"prompt": "a"}),
                ("/v1/chat/completions", {"messages": self.truth.chats[0]}),
            )
        )
        answer = await self.post(
            path, {**GREEDY, **content, "stream": stream, **draw.choice(BAD)}, status=400
        )
        assert answer.json()["error"]["message"]

    async def leave(self, stream, alpha, count, draw):
        body = {**GREEDY, "prompt": draw.choice(self.truth.prompts), "max_tokens": 150, "alpha": alpha}
        body |= {"tuco": True, "stream": stream}
        with suppress(httpx.TimeoutException):
            async with self.client.stream("POST", "/v1/completions", json=body, timeout=0.2) as answer:
                async for _ in answer.aiter_bytes():
                    return


async def run(truth, url, seed, requests):
    headers = {"authorization": f"Bearer {KEY}"}
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as client:
        fuzzer = Fuzzer(truth, client, seed)
        drawn = (fuzzer.draw() for _ in range(requests))

        async def one_client():
            for request in drawn:
                await request

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(one_client())
    return fuzzer.counts


@pytest.fixture(scope="module")
def truth(server):
    return Truth(server)


@pytest.mark.parametrize(
    ("requests", "seed"),
    [(300, 1), pytest.param(10_000, 2, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_mixed_requests(server, truth, requests, seed):
    cached = server.metric("vllm:prefix_cache_hits_total")
    counts = asyncio.run(run(truth, server.url, seed, requests))
    assert server.metric("vllm:prefix_cache_hits_total") > cached, "nothing came from the prefix cache"
    assert sum(counts.values()) == requests
    assert len(counts) == 6
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.process.poll() is None
