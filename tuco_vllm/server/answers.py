"""vLLM's answers with scores put in: a whole JSON answer, or a stream of server-sent events.

The shape, in every choice: ``"tuco": {"prompt": p, "tokens": [one per token], "layers": {name: [[L] per
token]}}``. ``tokens[0]`` is ``prompt``, the prompt's TuCo. In a stream each chunk has its own tokens' scores,
and ``prompt`` is in a choice's first scored chunk only. A number that is not finite (a model overflowed) is
null: JSON has no other word for it.
"""

import json
import math
from typing import Any

import numpy as np

from tuco_vllm.engine.score_feed import ResponseScores, tuco_of_rows
from tuco_vllm.records import LAYERS
from tuco_vllm.server.wishes import Wish

_DATA, _END = b"data: ", b"\n\n"


class ScoredAnswer:
    """Puts one response's scores into it.

    ``force_usage``: vLLM sends usage whether asked or not. ``fingerprint``: what vLLM closes a stream with;
    we made it put that into the usage chunk, which the client may not want.
    """

    def __init__(
        self,
        scores: ResponseScores,
        wish: Wish,
        *,
        force_usage: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        self._scores, self._fingerprint = scores, fingerprint
        self._layers, self._only_prompt = wish.layers, wish.only_prompt
        self._keep_usage = wish.usage or force_usage
        self._keep_running_usage = wish.running_usage or force_usage
        self._pending = b""

    def whole(self, body: bytes) -> bytes:
        """A complete JSON answer."""
        answer = json.loads(body)
        for choice in answer.get("choices", ()):
            choice["tuco"] = self._take(choice["index"], None) or {"tokens": []}
        return _compact(answer)

    def stream(self, data: bytes, *, last: bool = False) -> bytes:
        """The next bytes of an event stream: complete events, or all there is."""
        *events, self._pending = (self._pending + data).split(_END)
        out = b"".join(self._event(event) for event in events)
        if last:
            out, self._pending = out + self._pending, b""
        return out

    def _event(self, event: bytes) -> bytes:
        payload = event.removeprefix(_DATA)
        if payload == event or not payload.startswith(b"{"):  # a comment, [DONE]
            return event + _END
        chunk = json.loads(payload)
        if "choices" not in chunk:  # an error
            return event + _END
        if not chunk["choices"] and not self._keep_usage:
            return b""
        usage = chunk.get("usage")
        for choice in chunk["choices"]:
            # What vLLM says of a chunk's tokens; rows of later ones may be here already.
            end = usage["completion_tokens"] if usage and not choice.get("finish_reason") else None
            if tuco := self._take(choice["index"], end):
                choice["tuco"] = tuco
            if self._fingerprint is not None and choice.get("finish_reason") and not self._keep_usage:
                chunk["system_fingerprint"] = self._fingerprint
        if chunk["choices"] and not self._keep_running_usage:
            chunk.pop("usage", None)
        return _DATA + _compact(chunk) + _END

    def _take(self, choice: int, end: int | None) -> dict[str, Any]:
        start, rows = self._scores.take(choice, end)
        if not rows:
            return {}
        values = finite_or_null(tuco_of_rows(rows))
        tuco: dict[str, Any] = {"prompt": values[0]} if start == 0 else {}
        if self._only_prompt:
            values, rows = [], rows[:0]
        tuco["tokens"] = values
        if self._layers:
            by_name = np.stack(rows).transpose(2, 0, 1).tolist() if rows else [[]] * len(LAYERS)
            tuco["layers"] = dict(zip(LAYERS, finite_or_null(by_name), strict=True))
        return tuco


def finite_or_null(value: Any) -> Any:
    """A float, or nested lists of them, as JSON can hold it."""
    if isinstance(value, list):
        return [finite_or_null(item) for item in value]
    return value if math.isfinite(value) else None


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
