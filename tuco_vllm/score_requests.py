"""What engines are asked of a prompt, and what they answer: token ids and rows in, numbers of rows out."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from tuco_vllm.adapter import Adapter
from tuco_vllm.errors import InputError
from tuco_vllm.steering import PT_ON_FT_EMBEDDING, PT_STREAM, Asked


class MoreScores(NamedTuple):
    """What may be asked of a prompt beside its score and its response's."""

    trace: bool = False
    """The score at every token of the prompt."""
    output_co: bool = False
    """OutputCo (paper §5.5)."""
    relative_reward: bool = False
    """Log-probabilities of the response's tokens under both models."""


NO_MORE = MoreScores()
ALL_MORE = MoreScores(trace=True, output_co=True, relative_reward=True)


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """A sequence for an engine, of which more than the last token's score is read."""

    token_ids: list[int]
    """Those that the models read: a prompt, and a response without its last token, which they only write."""
    asked: Asked

    @property
    def num_rows(self) -> int:
        """How many rows are read."""
        return len(self.token_ids) - self.asked.first


EngineInput = list[int] | ScoredTokens
"""What an engine scores: a prompt's token ids, at the last one, or more."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The same under another adapter than the pair's own."""

    asked: EngineInput
    adapter: Adapter


def engine_inputs(prompt: list[int], response: list[int] | None, more: MoreScores) -> list[EngineInput]:
    """What engines are asked for one prompt: FT's stream always, and a stream for each extra that has one of
    its own (``engine.own_stream``). Without a response there is no reward."""
    last, written = len(prompt) - 1, response or []
    rewarded = bool(written) and more.relative_reward
    if not (written or more.trace or more.output_co):
        return [prompt]
    first, targets = 0 if more.trace else last, tuple(written) if rewarded else ()
    both = prompt + written[:-1]
    inputs: list[EngineInput] = [ScoredTokens(both, Asked(first, last, targets, more.output_co))]
    if more.output_co:
        inputs.append(ScoredTokens(prompt, Asked(last, last, state=True, stream=PT_ON_FT_EMBEDDING)))
    if rewarded:
        inputs.append(ScoredTokens(both, Asked(last, last, targets, stream=PT_STREAM)))
    return inputs


class RowScores(NamedTuple):
    """What an engine says of ``ScoredTokens``; None of what was not asked."""

    norms: Any
    """``[L, 7]`` float32, at the prompt's last token."""
    tucos: Any
    """``[n]`` float32: TuCo of every row from the first one asked for to the last."""
    state: Any = None
    """``[H]`` float32: the stream behind the last layer, at the prompt's last token."""
    logps: Any = None
    """Float32: the log-probabilities of ``Asked.targets``."""


def expect_streams(adapter: Adapter | None, more: MoreScores) -> None:
    """InputError for a stream of PT's own that is not the base's: an engine of adapters has no other."""
    if adapter is not None and more.output_co and adapter.adapts("embed_tokens"):
        raise InputError(
            f"the adapter {adapter.name} changes the embedding, from which OutputCo starts: leave it out"
        )
    if adapter is not None and more.relative_reward and adapter.adapts("lm_head"):
        raise InputError(
            f"the adapter {adapter.name} changes the head, which relative rewards have the base's of: leave "
            "them out"
        )
