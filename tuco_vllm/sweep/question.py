"""One question with the options that may answer it; or a row that is none, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuco_vllm.prompt_checks import kind_of
from tuco_vllm.records import PromptInput

MOST_OPTIONS = 128
"""Of whose tokens vLLM tells the log-probability at once (``MAX_LOGPROB_TOKEN_IDS`` in its 0.32)."""


class RowError(Exception):
    """What is wrong with a row of the data; it costs that row only."""


@dataclass(frozen=True, slots=True)
class Question:
    """A row of the data."""

    id: str
    task: str
    group: str | None = None
    prompt: PromptInput | None = None
    options: tuple[str, ...] = ()
    """Texts that may follow the prompt; the first token of each decides."""
    answer: int | None = None
    """Which of the options is right, from 0."""
    error: str | None = None
    """Why this row cannot be asked; then the four above may be missing."""


def question_or_error(identity: str, task: str, read: Callable[[], Question]) -> Question:
    """What ``read`` returns, or a Question that says what it raised RowError for."""
    try:
        return read()
    except RowError as error:
        return Question(identity, task, error=str(error))


def user_turn(text: str, *, chat: bool) -> PromptInput:
    """A prompt as it is, or in a chat as what the user says."""
    return [{"role": "user", "content": text}] if chat else text


def text_in(value: Any, name: str) -> str:
    """``value`` if it is a text with something in it. Raises RowError."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value)}, not a string")
    if not value.strip():
        raise RowError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} is not UTF-8 text") from error
    return value
