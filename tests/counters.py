"""vLLM's own counters, by which a test sees that what it is about has happened."""

from typing import Any


def counter(engine: Any, name: str) -> float:
    """Such as "num_preemptions"; of an LLM or LLMEngine with log stats on, summed over this process."""
    return sum(metric.value for metric in engine.get_metrics() if metric.name == f"vllm:{name}")
