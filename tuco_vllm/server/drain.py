"""The end of a server that was told to end: new requests are refused, those under way finish.

vLLM alone keeps /health at 200 then, and gives a new request to an engine that takes none: status 500.
"""

import threading

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PROBES = ("/health", "/ping")


class Drain:
    """Counts the requests under way, and lets new ones in until ``finish`` is called."""

    def __init__(self) -> None:
        self.begun = False
        self._running = 0
        self._changed = threading.Condition()

    def admit(self) -> bool:
        """Whether a request may begin; it has to ``leave`` then."""
        with self._changed:
            self._running += not self.begun
            return not self.begun

    def leave(self) -> None:
        """Say that an admitted request has ended, however it did."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Admit nobody any more, and wait for the last request's end, up to ``seconds``; not on the loop."""
        with self._changed:
            self.begun = True
            self._changed.wait_for(lambda: not self._running, seconds)


class DrainMiddleware:
    """Wrap ``app``: once the drain has begun, probes and POSTs get status 503; all else stays readable."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self.app, self.drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _PROBES:
            app = _refusal() if self.drain.begun else self.app
            return await app(scope, receive, send)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if not self.drain.admit():
            return await _refusal()(scope, receive, send)
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.leave()


def _refusal() -> JSONResponse:
    message = "the server is shutting down and takes no new requests"
    error = {"message": message, "type": "ServiceUnavailableError", "param": None, "code": 503}
    # A client's next request then opens a connection, which can be to a server that stays.
    return JSONResponse({"error": error}, 503, {"connection": "close"})
