"""What /metrics says of us, beside vLLM's own: in the same registry, so on the same page, with its label."""

import math
import time
from types import TracebackType

from prometheus_client import Counter, Histogram

_LABELS = ("model_name",)
"""The first of the names that the model is served under, as in vLLM's metrics."""

PROMPT_TUCO = Histogram(
    "tuco:prompt_tuco",
    "TuCo of scored prompts.",
    _LABELS,
    buckets=[step / 20 for step in range(1, 21)],
)
ALPHA = Histogram(
    "tuco:alpha",
    "alpha of the completion requests that named alpha or tuco.",
    _LABELS,
    buckets=[0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0],
)
SCORED = Counter("tuco:scored_requests", "Requests that were answered with scores.", _LABELS)
STEERED = Counter(
    "tuco:steered_requests", "Completion requests answered under an alpha other than 1.", _LABELS
)
CHECKED = Counter("tuco:checked", "Responses that were held against a threshold (--flag).", _LABELS)
FLAGGED = Counter("tuco:flagged", "Responses whose score is beyond its threshold (--flag).", _LABELS)
SCORE_SECONDS = Histogram(
    "tuco:score_request_seconds",
    "Seconds that requests to /v1/tuco/score took, from their first byte.",
    _LABELS,
    buckets=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0],
)
SCORE_ERRORS = Counter(
    "tuco:score_request_errors",
    "Requests to /v1/tuco/score that were not answered with scores (499: the client left).",
    (*_LABELS, "status"),
)


def show(model_name: str, *, flags: bool = False) -> None:
    """Have the page list all of them from the start, at zero; those of ``flags`` where there are some."""
    for metric in (PROMPT_TUCO, ALPHA, SCORED, STEERED, *((CHECKED, FLAGGED) if flags else ())):
        metric.labels(model_name)


def count_verdict(model_name: str, flagged: bool | None) -> None:
    """Count a response that was held against a threshold; None says that there was none for it."""
    if flagged is not None:
        CHECKED.labels(model_name).inc()
        FLAGGED.labels(model_name).inc(int(flagged))


def observe_prompt(model_name: str, tuco: float) -> None:
    """Count a prompt's score; not one that is NaN, which would make the histogram's sum NaN for ever."""
    if math.isfinite(tuco):
        PROMPT_TUCO.labels(model_name).observe(tuco)


class ScoreRequest:
    """Times a request to the score route, and counts it as an error unless ``status`` says otherwise."""

    def __init__(self, model_name: str) -> None:
        self._model_name, self._start = model_name, time.perf_counter()
        self.status = 500

    def __enter__(self) -> "ScoreRequest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        SCORE_SECONDS.labels(self._model_name).observe(time.perf_counter() - self._start)
        if self.status >= 400:
            SCORE_ERRORS.labels(self._model_name, str(self.status)).inc()
