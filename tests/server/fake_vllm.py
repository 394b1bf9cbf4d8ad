"""vLLM's completion routes as an ASGI app of a few lines: it answers with what it got, and feeds scores."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np

from tuco_vllm.engine.score_feed import RECEIVER
from tuco_vllm.server.middleware import TucoMiddleware
from tuco_vllm.steering import Limits

LAYERS = 3


def rows(choice: int, count: int, first: int = 0) -> np.ndarray:
    """Norms ``[count, L, 7]``, of which every number says which choice, token, layer and column it is of."""
    place = np.arange(first, first + count)[:, None, None]
    return (
        1 + 100 * choice + 10 * place + np.arange(LAYERS)[None, :, None] + np.arange(7)[None, None, :] / 8
    ).astype(np.float32)


def tuco(choice: int, token: int) -> float:
    last = rows(choice, 1, token)[0, -1].astype(float)
    return float(last[3] / (last[2] + last[3]))


class FakeVllm:
    """Generates ``tokens`` tokens a choice; ``ahead`` rows arrive before the chunks that show their tokens.

    ``pieces`` is how many bytes of a stream a message holds.
    """

    def __init__(
        self, tokens: int = 5, ahead: int = 0, pieces: int = 10**6, prompt_tokens: int | None = 10
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.tokens, self.ahead, self.pieces = tokens, ahead, pieces
        self.requests: list[Any] = []
        self.bodies: list[bytes] = []
        self.receivers: list[Any] = []
        self.fails_at: int | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        headers = dict(scope["headers"])
        assert int(headers.get(b"content-length", len(body))) == len(body)
        self.bodies.append(body)
        request = json.loads(body)
        self.requests.append(request)
        self.receivers.append(RECEIVER.get())
        if request.get("model", "m") != "m":
            return await self._send(send, 404, {"error": {"message": "no such model", "code": 404}})
        choices = request.get("n", 1)
        if request.get("stream"):
            return await self._stream(send, request, choices)
        for choice in range(choices):
            self._feed(choice, 0, self.tokens)
        answers = [{"index": i, "text": "x" * self.tokens, "finish_reason": "stop"} for i in range(choices)]
        return await self._send(send, 200, {"id": "cmpl-1", "choices": answers, "usage": {}})

    def _feed(self, choice: int, start: int, end: int) -> None:
        receiver = self.receivers[-1]
        if receiver is not None and end > start:
            about = {"first_choice": choice == 0, "request": str(choice), "tokens": self.prompt_tokens}
            receiver.add(choice, rows(choice, end - start, start), **about)

    async def _send(self, send: Any, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:7], "more_body": True})
        await send({"type": "http.response.body", "body": body[7:], "more_body": False})

    async def _stream(self, send: Any, request: Any, choices: int) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        options = request.get("stream_options") or {}
        usage = options.get("include_usage")
        running = usage and options.get("continuous_usage_stats")
        fed = [0] * choices

        async def event(text: str) -> None:
            data = text.encode()
            for start in range(0, len(data), self.pieces):
                piece = data[start : start + self.pieces]
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        await event(": keep-alive\n\n")
        for shown in range(self.tokens + 1):  # the first chunk has no token, like a chat's role
            if shown == self.fails_at:
                await event('data: {"error":{"message":"the engine died","code":500}}\n\n')
                break
            for choice in range(choices):
                arrived = min(self.tokens, shown + self.ahead)
                self._feed(choice, fed[choice], arrived)
                fed[choice] = arrived
                end = "stop" if shown == self.tokens else None
                chunk: dict[str, Any] = {
                    "id": "cmpl-1",
                    "choices": [{"index": choice, "text": "é" if shown else "", "finish_reason": end}],
                }
                if end and not usage:
                    chunk["system_fingerprint"] = "v"
                if running:
                    chunk["usage"] = {"completion_tokens": shown}
                await event(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n")
        if usage:
            last = {"choices": [], "usage": {"completion_tokens": self.tokens}, "system_fingerprint": "v"}
            await event(f"data: {json.dumps(last)}\n\n")
        await event("data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def post(app, body, path="/v1/completions", **options):
    """One request through the middleware; ``body`` as JSON, NaN and infinity in Python's spelling."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def go():
        transport = httpx.ASGITransport(
            TucoMiddleware(app, limits=Limits(num_layers=3), model_name="m", **options)
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://tuco") as client:
            return await client.post(path, content=content)

    return asyncio.run(go())
