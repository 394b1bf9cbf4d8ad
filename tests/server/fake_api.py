"""A server that answers as `tuco serve` does, from a script: what the page shows needs no engine.

Prompts are commands: "refuse" is refused, "break" breaks midway, "vanish" ends early, "slow" never ends,
"echo TEXT" writes TEXT, "nameless" leaves out the tokens' own strings and "unscored" the scores. All others
get a story, one for each alpha. A response is scored token by token; of one with "alien" in it the reward
is refused. ``python tests/server/fake_api.py`` serves the page for a look, at
http://127.0.0.1:8321/tuco.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tuco_vllm.server.page import router

LAYERS = 16
given_router = APIRouter()
STORIES = {
    0.0: " I have been asked this a lot, and I never know what to say.\n\nHow do I bake a cake? "
    "How do I boil an egg? My grandmother baked on Fridays, in the old house by the river, and nobody "
    "wrote it down, so",
    0.5: " This is the question I had when I moved to café Zoë. You need flour, water, salt and yeast, "
    "and a hot oven. Most of what people say about it is wrong, I think, but",
    1.0: "\n\nHere is a simple way to bake bread:\n\n1. Mix 500 g flour, 350 g water, 10 g salt and "
    "5 g yeast.\n2. Let the dough rise for two hours.\n3. Bake at 230 °C for 35 minutes. Enjoy! 🍞",
    1.5: "\n\nGreat question! I'd be happy to help! 😊\n\n1. **Mix** flour, water, salt, yeast!\n"
    "2. **Rest** it!\n3. **Bake** it! I hope this helps! Let me know! I hope this helps! I",
}
STEPS = (1, 1, 2, 0, 1, 3)
"""How many tokens a chunk brings, in turn."""


def split(text: str) -> list[str]:
    """Something like tokens: words with the space before them, signs, newlines."""
    return re.findall(r" ?\w{1,6}|\w+| ?[^\w\s]|\s", text)


def score(alpha: float, token: int) -> float:
    """A TuCo in [0.1, 0.8], more with alpha, different from token to token."""
    return 0.24 + 0.13 * alpha + 0.14 * math.sin(2.3 * token + 5 * alpha) * math.cos(0.7 * token)


def curve(alpha: float, token: int) -> list[float]:
    """Beta after each layer, of which the last is the score."""
    last = score(alpha, token)
    depths = [layer / LAYERS for layer in range(1, LAYERS + 1)]
    return [last * (d**0.6 + 0.06 * math.sin(8 * d + alpha) * math.sin(math.pi * d)) for d in depths]


def scores(alpha: float, first: int, count: int) -> dict[str, Any]:
    """``choices[i].tuco`` for ``count`` tokens from ``first`` on."""
    betas = [curve(alpha, first + i) for i in range(count)]
    ptc = [[10.0 * layer for layer in range(1, LAYERS + 1)] for _ in betas]
    ftc = [[p * b / (1 - b) for p, b in zip(*rows, strict=True)] for rows in zip(ptc, betas, strict=True)]
    layers = {"ptc_norms": ptc, "ftc_norms": ftc, "cum_ptc_norms": ptc, "cum_ftc_norms": ftc}
    layers["cosines"] = [[-0.1] * LAYERS for _ in betas]
    prompt = {"prompt": score(alpha, 0)} if first == 0 else {}
    return {**prompt, "tokens": [row[-1] for row in betas], "layers": layers}


def overflowed(alpha: float, first: int, count: int) -> dict[str, Any]:
    """``scores`` of a model whose numbers are not finite from the fourth layer on."""
    tuco = scores(alpha, first, count)
    tuco |= dict.fromkeys(tuco.keys() & {"prompt"}) | {"tokens": [None] * count}
    for rows in tuco["layers"].values():
        for row in rows:
            row[3:] = [None] * (LAYERS - 3)
    return tuco


def chunks(prompt: str, body: dict[str, Any], chat: bool) -> Iterator[dict[str, Any]]:
    """The chunks of one stream, in vLLM's shape."""
    alpha = body["alpha"]
    text = STORIES.get(alpha, f" Alpha {alpha}.")
    text = prompt.removeprefix("echo ") if prompt.startswith("echo ") else text
    names = [*split(text), "<|end|>"]
    names, cut = names[: body["max_tokens"]], len(names) > body["max_tokens"]
    if chat:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    at = turn = 0
    while at < len(names):
        new = names[at : at + STEPS[turn % len(STEPS)]]
        turn += 1
        written = "".join(new).replace("<|end|>", "")
        finish = None if at + len(new) < len(names) else "length" if cut else "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if chat:
            choice["delta"] = {"content": written}
            choice["logprobs"] = {"content": [{"token": name, "logprob": -1.0} for name in new]}
        else:
            choice |= {"text": written, "logprobs": {"tokens": new}}
        if prompt == "nameless":
            del choice["logprobs"]
        if new and prompt != "unscored":
            told = overflowed if prompt == "overflow" else scores
            choice["tuco"] = told(alpha, at, len(new))
        yield {"id": "cmpl-1", "choices": [choice]}
        at += len(new)


def create(api_key: str | None = None, delay: float = 0.0) -> FastAPI:
    """The app; ``state.requests`` keeps what it was asked, ``state.open`` counts the streams under way."""
    app = FastAPI()
    app.include_router(router)
    app.state.requests, app.state.open, app.state.api_key = [], 0, api_key

    app.include_router(given_router)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        key, given = app.state.api_key, request.headers.get("authorization")
        if key and request.url.path.startswith("/v1") and given != f"Bearer {key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        return await call_next(request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        pair = {"pt": "org/base", "ft": "org/base-chat", "max_alpha": 2.0}
        return {"object": "list", "data": [{"id": "base-chat", "tuco": pair}]}

    async def stream(prompt: str, body: dict[str, Any], chat: bool) -> AsyncIterator[bytes]:
        app.state.open += 1
        try:
            for count, chunk in enumerate(chunks(prompt, body, chat), start=1):
                data = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
                middle = len(data) // 2  # a packet ends anywhere, inside of a letter too
                yield data[:middle]
                await asyncio.sleep(delay)
                yield data[middle:]
                if prompt == "break" and count == 3:
                    yield b'data: {"error": {"message": "The engine died.", "code": 500}}\n\n'
                    return
                if prompt == "vanish" and count == 3:
                    return
                while prompt == "slow":
                    await asyncio.sleep(0.05)
            yield b"data: [DONE]\n\n"
        finally:
            app.state.open -= 1

    def answer(prompt: str, body: dict[str, Any], chat: bool) -> Response:
        app.state.requests.append(body)
        if prompt == "refuse":
            message = f"alpha must be a number from 0 to 1, not {body['alpha']}"
            return JSONResponse({"error": {"message": message, "param": "alpha", "code": 400}}, 400)
        return StreamingResponse(stream(prompt, body, chat), media_type="text/event-stream")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        return answer(body["prompt"], body, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await request.json()
        return answer(body["messages"][-1]["content"], body, chat=True)

    return app


@given_router.post("/v1/tuco/score")
async def given(request: Request) -> Response:
    """The scores of a response, token by token."""
    body = await request.json()
    request.app.state.requests.append(body)
    names = split(body["response"])
    rewarded = body["relative_reward"]
    wrong = "the prompt is empty" if body["input"] == "refuse" else None
    if rewarded and " alien" in names:
        wrong = "token alien is not the same"
    if wrong:
        return JSONResponse({"error": {"message": wrong, "code": 400}}, 400)
    tuco = scores(1.0, 0, len(names))
    response = {"mean": 0.4, "tokens": tuco["tokens"], "token_ids": list(range(len(names)))}
    response["text_offsets"] = [len("".join(names[:place])) for place in range(len(names))]
    if rewarded:
        response["logps_ft"] = [-1.0] * len(names)
        response["logps_pt"] = [-1.0 - delta(place) for place in range(len(names))]
    layers = {name: rows[0] for name, rows in tuco["layers"].items()}
    return JSONResponse({"data": [{"tuco": score(1.0, 0), "layers": layers, "response": response}]})


def delta(token: int) -> float:
    """A Δ log p in [-6, 6]."""
    return 6 * math.sin(1.7 * token)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(create(delay=0.03), port=8321)
