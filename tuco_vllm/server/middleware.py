"""alpha and tuco for vLLM's own completion routes: an ASGI layer around them, none of them subclassed.

Requests that name neither field go through byte by byte, and so do their answers.
"""

from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuco_vllm.engine.score_feed import RECEIVER, ResponseScores
from tuco_vllm.server import metrics
from tuco_vllm.server.answers import ScoredAnswer
from tuco_vllm.server.checks import Checker, Checks
from tuco_vllm.server.errors import RequestError
from tuco_vllm.server.wishes import Wish, read_wish, refuse_elsewhere, with_model
from tuco_vllm.steering import Limits

STEERABLE = ("/v1/completions", "/v1/chat/completions")
"""Where alpha and tuco are served."""

GENERATING = (
    *("/v1/chat/completions/batch", "/v1/responses", "/v1/messages", "/invocations", "/generative_scoring"),
    *("/v1/systemone", "/cohere/v2/chat", "/inference/v1/generate"),
    *("/v1/completions/render", "/v1/chat/completions/render", "/v1/responses/render", "/v1/messages/render"),
    "/cohere/v2/chat/render",
)
"""vLLM's other ways to a completion, or half of one: the fields are refused there, not ignored."""


class TucoMiddleware:
    """Wrap ``app``, which serves vLLM's routes.

    Args:
        limits: the alphas that the engine takes.
        model_name: what metrics call the model.
        force_usage, fingerprint: ``ScoredAnswer``'s.
        default_model: of requests that name none; vLLM's is the model that it has loaded, an adapter's base.
        checker: judges scores, those that nobody asked for too.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        model_name: str,
        force_usage: bool = False,
        fingerprint: str | None = None,
        default_model: str | None = None,
        checker: Checker | None = None,
    ) -> None:
        self.app = app
        self.default_model, self.checker = default_model, checker
        self.limits, self.model_name = limits, model_name
        self._scored = partial(ScoredAnswer, force_usage=force_usage, fingerprint=fingerprint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in STEERABLE and path not in GENERATING:
            return await self.app(scope, receive, send)
        body = await _read(receive)
        if body is None:
            return None
        if self.default_model is not None:
            body = with_model(body, self.default_model)
            scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
        try:
            if path in GENERATING:
                refuse_elsewhere(body)
                wish = None
            else:
                wish = read_wish(body, self.limits)
        except RequestError as error:
            return await error.response()(scope, receive, send)
        checks = None
        if self.checker is not None:
            checks = self.checker.checks(path, body, 1.0 if wish is None else wish.steering.alpha)
        if wish is None:
            return await self._watched(checks, scope, _replay(body, receive), send)
        scope = {**scope, "headers": _with_length(scope["headers"], len(wish.body))}
        await self._serve(wish, checks, scope, _replay(wish.body, receive), send)

    async def _serve(
        self, wish: Wish, checks: Checks | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                _count(wish, self.model_name)
            await send(message)

        if not wish.steering.scored:
            return await self._watched(checks, scope, receive, counting)
        scores = self._scores(checks)
        answer = self._scored(scores, wish, checks=checks)
        await self._received(scores, checks, scope, receive, _Rewriter(answer, counting))

    async def _watched(self, checks: Checks | None, scope: Scope, receive: Receive, send: Send) -> None:
        """An answer that no score is put into; it is scored where there are thresholds for it."""
        if checks is None or not checks.judging:
            return await self.app(scope, receive, send)
        await self._received(self._scores(checks, keep=False), checks, scope, receive, send)

    def _scores(self, checks: Checks | None, *, keep: bool = True) -> ResponseScores:
        watch = None if checks is None else checks.add
        return ResponseScores(partial(metrics.observe_prompt, self.model_name), watch, keep=keep)

    async def _received(
        self, scores: ResponseScores, checks: Checks | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        token = RECEIVER.set(scores)
        try:
            await self.app(scope, receive, send)
        finally:
            RECEIVER.reset(token)
            scores.close()  # the client has left, perhaps, and engine steps are still under way
            if checks is not None:
                checks.count()


class _Rewriter:
    """ASGI ``send`` that passes a good answer through ``ScoredAnswer``, and anything else as it is."""

    def __init__(self, answer: ScoredAnswer, send: Send) -> None:
        self.answer, self.send = answer, send
        self.start: Message | None = None  # held back while the length of a whole answer is not known
        self.streams = self.plain = False
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.streams = kind.startswith(b"text/event-stream")
            whole = kind.startswith(b"application/json")
            self.plain = message["status"] != 200 or not (self.streams or whole)
            if self.streams or self.plain:
                await self.send(message)
            else:
                self.start = message
        elif message["type"] != "http.response.body" or self.plain:
            await self.send(message)
        elif self.streams:
            more = message.get("more_body", False)
            body = await self.answer.stream(message.get("body", b""), last=not more)
            if body or not more:
                await self.send({**message, "body": body})
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_whole()

    async def _send_whole(self) -> None:
        assert self.start is not None
        body = await self.answer.whole(self.body)
        headers = _with_length(self.start["headers"], len(body))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _count(wish: Wish, model_name: str) -> None:
    metrics.ALPHA.labels(model_name).observe(wish.steering.alpha)
    if wish.steering.scored:
        metrics.SCORED.labels(model_name).inc()
    if wish.steering.alpha != 1.0:
        metrics.STEERED.labels(model_name).inc()


async def _read(receive: Receive) -> bytes | None:
    """A request's whole body; None if the client has left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` with a body that has been read already in front."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", b"%d" % length)]
