"""vLLM's answers with scores put in: a whole JSON answer, or a stream of server-sent events.

The shape, in every choice: ``"tuco": {"prompt": p, "tokens": [one per token], "layers": {name: [[L] per
token]}}``. ``tokens[0]`` is ``prompt``, the prompt's TuCo. In a stream each chunk has its own tokens' scores,
and ``prompt`` is in a choice's first scored chunk only. A number that is not finite (a model overflowed) is
null: JSON has no other word for it. A server with ``--flag`` says ``flagged`` beside ``prompt``: true, false,
or null without a threshold; where thresholds are of responses, a stream does so in a choice's last chunk.
"""

import asyncio
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.score_feed import ResponseScores, tuco_of_rows
from tuco_vllm.records import LAYERS
from tuco_vllm.server.checks import Checks
from tuco_vllm.server.wishes import Wish

_DATA, _END = b"data: ", b"\n\n"

_SHORT = 32
"""So many tokens' scores are written on the event loop, in a few milliseconds; more in ``_WRITER``."""

_WRITER = ThreadPoolExecutor(1, "tuco-answers")
"""One thread: two would take turns, while the event loop waits for both."""


class ScoredAnswer:
    """Puts one response's scores into it.

    ``force_usage``: vLLM sends usage whether asked or not. ``fingerprint``: what vLLM closes a stream with;
    we made it put that into the usage chunk, which the client may not want. ``checks`` has the verdicts on
    its choices, where a server gives some.
    """

    def __init__(
        self,
        scores: ResponseScores,
        wish: Wish,
        *,
        force_usage: bool = False,
        fingerprint: str | None = None,
        checks: Checks | None = None,
    ) -> None:
        self._scores, self._fingerprint, self._checks = scores, fingerprint, checks
        self._layers, self._only_prompt = wish.layers, wish.only_prompt
        self._keep_usage = wish.usage or force_usage
        self._keep_running_usage = wish.running_usage or force_usage
        self._pending = b""

    async def whole(self, body: bytes) -> bytes:
        """A complete JSON answer."""
        return await self._written(self._whole, body)

    async def stream(self, data: bytes, *, last: bool = False) -> bytes:
        """The next bytes of an event stream: complete events, or all there is."""
        *events, self._pending = (self._pending + data).split(_END)
        out = await self._written(lambda: b"".join(map(self._event, events)))
        if last:
            out, self._pending = out + self._pending, b""
        return out

    async def _written(self, write: Callable[..., bytes], *arguments: bytes) -> bytes:
        if self._scores.waiting <= _SHORT:
            return write(*arguments)
        return await asyncio.get_running_loop().run_in_executor(_WRITER, write, *arguments)

    def _whole(self, body: bytes) -> bytes:
        answer = json.loads(body)
        choices = []
        for choice in answer.pop("choices"):
            tuco = self._take(choice["index"], None, last=True)
            choices.append(_with(_compact(choice), "tuco", tuco or self._nothing()))
        return _with(_compact(answer), "choices", _list(choices))

    def _nothing(self) -> bytes:
        """The ``tuco`` of a choice without scores."""
        return b'{"tokens":[]}' if self._checks is None else b'{"flagged":null,"tokens":[]}'

    def _event(self, event: bytes) -> bytes:
        payload = event.removeprefix(_DATA)
        if payload == event or not payload.startswith(b"{"):  # a comment, [DONE]
            return event + _END
        chunk = json.loads(payload)
        if "choices" not in chunk:  # an error
            return event + _END
        if not chunk["choices"] and not self._keep_usage:
            return b""
        usage, choices = chunk.get("usage"), []
        for choice in chunk.pop("choices"):
            # What vLLM says of a chunk's tokens; rows of later ones may be here already.
            end = usage["completion_tokens"] if usage and not choice.get("finish_reason") else None
            last = bool(choice.get("finish_reason"))
            tuco, written = self._take(choice["index"], end, last), _compact(choice)
            choices.append(_with(written, "tuco", tuco) if tuco else written)
            if self._fingerprint is not None and choice.get("finish_reason") and not self._keep_usage:
                chunk["system_fingerprint"] = self._fingerprint
        if choices and not self._keep_running_usage:
            chunk.pop("usage", None)
        return _DATA + _with(_compact(chunk), "choices", _list(choices)) + _END

    def _take(self, choice: int, end: int | None, last: bool) -> bytes:
        """The value of a choice's ``tuco``; empty if there is nothing to say of it yet. ``last``: whether no
        more of the choice follows."""
        start, rows = self._scores.take(choice, end)
        checks, flagged = self._checks, {}
        if checks is not None and (last if checks.at_end else rows and start == 0):
            flagged = {"flagged": checks.verdict(choice)}
        if not rows and not flagged:
            return b""
        values = finite_or_null(tuco_of_rows(rows))
        tuco: dict[str, Any] = {"prompt": values[0]} if rows and start == 0 else {}
        tuco |= flagged
        if self._only_prompt:
            values, rows = [], []
        written = _compact({**tuco, "tokens": values})
        return _with(written, "layers", _layers(rows)) if self._layers else written


def _layers(rows: list[Any]) -> bytes:
    """``{name: [[L] per token]}``, list by list: one call for all of it would hold the GIL for its length."""
    norms = np.stack(rows).transpose(2, 0, 1) if rows else np.empty((len(NORM_COLUMNS), 0, 0))
    finite = bool(np.isfinite(norms).all())
    fields = []
    for name in LAYERS:
        tokens = norms[NORM_COLUMNS.index(name)]
        lists = [_compact(row.tolist() if finite else finite_or_null(row.tolist())) for row in tokens]
        fields.append(b'"%b":%b' % (name.encode(), _list(lists)))
    return b"{%b}" % b",".join(fields)


def finite_or_null(value: Any) -> Any:
    """A float or None, or nested lists of them, as JSON can hold it."""
    if isinstance(value, list):
        return [finite_or_null(item) for item in value]
    return value if value is not None and math.isfinite(value) else None


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _compact(value: Any) -> bytes:
    return _encode(value).encode()


def _list(written: list[bytes]) -> bytes:
    return b"[%b]" % b",".join(written)


def _with(written: bytes, name: str, value: bytes) -> bytes:
    """A JSON object, not an empty one, with one more field."""
    return b'%b,"%b":%b}' % (written[:-1], name.encode(), value)
