"""`tuco serve --flag FILE`: whether the scores of requests are beyond a calibration's thresholds.

Every request that a threshold may hold for is scored, whether it asked or not: counters that saw only those
who ask would say nothing. An answer says ``flagged`` only to those who ask for scores; all others go through
byte by byte. ``flagged`` is null where nothing was calibrated: another form of prompt (a template of the
request's own, other template variables, no generation prompt), a length beyond the clean rows', a model that
is not the pair's FT, an alpha other than 1, whose scores are of another stream.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field

from tuco_vllm.config import ModelPair
from tuco_vllm.engine.score_feed import Rows, tuco_of_rows
from tuco_vllm.errors import InputError
from tuco_vllm.flagging import Flags
from tuco_vllm.records import SCALARS, numbers_of
from tuco_vllm.server import metrics

RESPONSE = "response_tuco"
"""The column that is of what was generated; all others are the prompt's, known with its first token."""

_CHATS = (
    *("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/responses", "/v1/messages"),
    "/cohere/v2/chat",
)
_RAW = ("/v1/completions", "/inference/v1/generate")
_EITHER = "/invocations"

_OTHER_FORMS = {
    "chat_template": bool,
    "chat_template_kwargs": bool,
    "documents": bool,
    "add_generation_prompt": lambda value: value is False,
    "continue_final_message": lambda value: value is True,
    # To vLLM these are variables of the template.
    "reasoning_effort": lambda value: value is not None,
    "reasoning": bool,
    "thinking": bool,
    "tools": bool,
}
"""Fields of a chat by which its prompt has another form than a corpus has, and when they do that."""


def expect_fit(flags: Flags, pair: ModelPair) -> None:
    """InputError where a server of ``pair`` cannot have the scores that a calibration is of.

    A server computes scores in the model's dtype. Those of 16-bit models come out higher than with float32
    rows, by as much as a threshold is to tell apart: such a calibration would flag something else than it
    says, and is refused.
    """
    for role, checkpoint, calibrated in (
        ("PT", pair.pt, flags.pt_fingerprint),
        ("FT", pair.ft, flags.ft_fingerprint),
    ):
        if checkpoint.fingerprint != calibrated:
            told = f"of another {role} than {checkpoint.name}" + (f" (FT {flags.ft})" if role == "FT" else "")
            raise InputError(
                f"--flag {flags.path} is {told}: score clean rows with this pair, calibrate those"
            )
    if flags.column not in (*SCALARS, RESPONSE):
        raise InputError(
            f"--flag {flags.path} is of {flags.column}, which a server does not compute: calibrate tuco, "
            "response_tuco or another column of one pass"
        )
    if flags.row_dtype != flags.dtype:
        raise InputError(
            f"--flag {flags.path} is of scores in {flags.dtype} with rows in {flags.row_dtype}, and a "
            "server's rows are in the model's dtype, which rounds scores up: calibrate those of tuco score "
            "--row-dtype model"
        )


def expect_dtype(flags: Flags, dtype: str) -> None:
    """InputError where a server of this ``dtype`` rounds scores otherwise."""
    if dtype not in ("auto", flags.dtype):
        raise InputError(
            f"--flag {flags.path} is of scores in {flags.dtype}, and the server computes in {dtype}: give "
            f"--dtype {flags.dtype}, or calibrate scores in {dtype}"
        )


@dataclass(frozen=True)
class Checker:
    """A calibration in a server."""

    flags: Flags
    chats: str
    """SHA-256 of the template that the server's chats go through; "" where chats have no such form."""
    models: Collection[str]
    """The names by which requests get the pair's own FT."""
    model_name: str
    """What metrics call it."""

    def warnings(self) -> list[str]:
        """What is never judged. InputError where that is everything."""
        known = self.flags.templates
        if None not in known and self.chats not in known:
            raise InputError(
                f"--flag {self.flags.path} is of chats through another template than this server's: give it "
                "as --chat-template, without --default-chat-template-kwargs, or score and calibrate anew"
            )
        unknown = [] if self.chats in known else ["chats, whose template is another,"]
        unknown += [] if None in known else ["raw prompts"]
        return [f"{what} are not judged by {self.flags.path}: their flagged is null" for what in unknown]

    def checks(self, path: str, body: bytes, alpha: float = 1.0) -> "Checks":
        """For the answer to a request."""
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            request = None
        fits = (
            isinstance(request, dict) and alpha == 1.0 and (request.get("model") or "") in ("", *self.models)
        )
        if not fits or request.get("use_beam_search"):
            return Checks(self, None)
        form: tuple[str | None] | None = None
        if path in _CHATS or (path == _EITHER and "messages" in request):
            other = any(test(request.get(name)) for name, test in _OTHER_FORMS.items())
            form = None if other or request.get("add_special_tokens") else (self.chats,)
        elif path in _RAW or path == _EITHER:
            form = None if request.get("add_special_tokens") is False else (None,)
        if form is not None and form[0] not in self.flags.templates:
            form = None
        echoed = bool(request.get("echo")) and request.get("max_tokens") == 0
        return Checks(self, form, echoed)

    def judged(self, templated: bool, tokens: int, value: float | None, model: str) -> bool | None:
        """The verdict on a score that is whole, counted."""
        verdict = None
        if model in self.models:
            verdict = self.flags.flagged(self.chats if templated else None, tokens, value)
        metrics.count_verdict(self.model_name, verdict)
        return verdict


@dataclass
class _Seen:
    """What is known of one engine request: a choice of an answer."""

    choice: int
    tokens: int | None
    first: float
    """The prompt's score; NaN where the response's counts."""
    tucos: list[float] = field(default_factory=list)


class Checks:
    """The verdicts on one HTTP response."""

    def __init__(self, checker: Checker, form: tuple[str | None] | None, echoed: bool = False) -> None:
        """``form`` holds the template of the prompts, None for raw ones; it is None where nothing is judged.
        ``echoed``: whether nothing is generated but a token that vLLM does not show."""
        self._checker, self._form, self._echoed = checker, form, echoed
        self._seen: dict[str, _Seen] = {}

    @property
    def judging(self) -> bool:
        """Whether any verdict may come of it: if not, there is no need for scores."""
        return self._form is not None

    @property
    def at_end(self) -> bool:
        """Whether verdicts are of responses, and so known when those have ended."""
        return self._checker.flags.column == RESPONSE

    def add(self, request: str, choice: int, tokens: int | None, rows: Rows) -> None:
        """Rows of an engine request's next tokens; its prompt has ``tokens``."""
        if not self.judging:
            return
        seen = self._seen.get(request)
        if seen is None:
            first = math.nan if self.at_end else float(numbers_of(rows[0])[self._checker.flags.column])
            seen = self._seen[request] = _Seen(choice, tokens, first)
        if self.at_end:
            seen.tucos += tuco_of_rows(rows)

    def verdict(self, choice: int) -> bool | None:
        """On a choice of an answer, by what has come so far."""
        return next((self._of(seen) for seen in self._seen.values() if seen.choice == choice), None)

    def count(self) -> None:
        """Count all verdicts, once."""
        for seen in self._seen.values():
            metrics.count_verdict(self._checker.model_name, self._of(seen))
        self._seen.clear()

    def _of(self, seen: _Seen) -> bool | None:
        if self._form is None or seen.tokens is None:
            return None
        value = seen.first
        if self.at_end:
            value = math.nan if self._echoed else math.fsum(seen.tucos) / len(seen.tucos)
        return self._checker.flags.flagged(self._form[0], seen.tokens, value)
