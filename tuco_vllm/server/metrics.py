"""What /metrics says of us, beside vLLM's own: in the same registry, so on the same page."""

import math

from prometheus_client import Counter, Histogram

PROMPT_TUCO = Histogram(
    "tuco:prompt_tuco",
    "TuCo of scored prompts.",
    buckets=[step / 20 for step in range(1, 21)],
)
ALPHA = Histogram(
    "tuco:alpha",
    "alpha of the completion requests that named alpha or tuco.",
    buckets=[0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0],
)
SCORED = Counter("tuco:scored_requests", "Requests that were answered with scores.")
STEERED = Counter("tuco:steered_requests", "Completion requests answered under an alpha other than 1.")


def observe_prompt(tuco: float) -> None:
    """Count a prompt's score; not one that is NaN, which would make the histogram's sum NaN for ever."""
    if math.isfinite(tuco):
        PROMPT_TUCO.observe(tuco)
