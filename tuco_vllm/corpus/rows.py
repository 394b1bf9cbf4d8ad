"""Records -> source rows: an id, a prompt or the reason why there is none, and the other columns."""

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.json_text import parse_json
from tuco_vllm.corpus.readers import Record
from tuco_vllm.prompt_checks import ends_with_assistant, kind_of
from tuco_vllm.records import PromptInput, ResponseInput


@dataclass(slots=True)
class SourceRow:
    """A row to score. ``error`` says why it cannot be; the prompt is then whatever text could be read."""

    id: str
    prompt: PromptInput | None
    error: str | None
    response: ResponseInput | None
    """None where there is none, or where it is the turn that ends the prompt."""
    extra: dict[str | None, Any]
    """The columns that are passed through, by their ``source``."""

    @property
    def size(self) -> int:
        """Its characters or bytes in a chunk, about: what bounds a chunk."""
        return _size(self.prompt) + _size(self.response) + sum(map(_size, self.extra.values()))


def source_row(
    record: Record, default_id: str, columns: Columns, passed: AbstractSet[str | None] = frozenset()
) -> SourceRow:
    """The row of a record. ``passed``: the sources of the columns that are passed through."""
    extra: dict[str | None, Any] = {name: each for name, each in record.columns.items() if name in passed}
    if None in passed:
        others = record.columns.keys() - passed - columns.asked_for
        extra[None] = {name: each for name, each in record.columns.items() if name in others} or None
    row_id, prompt, response, error = default_id, None, None, record.error
    try:
        own_id = _plain(record.columns.get(columns.id)) if columns.id is not None else None
        if own_id is not None:
            is_json = isinstance(own_id, (int, float, list, dict))
            row_id = json.dumps(own_id, default=as_text) if is_json else as_text(own_id)
        prompt, fault = _prompt(record, columns)
        if columns.score != "prompt":
            response, other = _response(record, columns, prompt)
            fault = fault or other
        elif ends_with_assistant(prompt):
            prompt = prompt[:-1] or None  # type: ignore[index]
            fault = fault or (None if prompt else "the chat is an assistant turn alone: there is no prompt")
        error = error or fault
    except (ValueError, OverflowError) as broken:  # Parquet also holds bad UTF-8, and the year 10000
        error = error or f"unreadable value: {broken}"
    return SourceRow(row_id, prompt, error, response, extra)


def _prompt(record: Record, columns: Columns) -> tuple[PromptInput | None, str | None]:
    """What to score, and why it cannot be scored: messages where the row has them, else the prompt."""
    messages = _plain(record.columns.get(columns.messages)) if columns.messages is not None else None
    if messages is not None:
        return _messages(messages)
    if columns.prompt not in record.columns:
        return None, f"the row has no column {columns.prompt!r}"
    prompt = _plain(record.columns[columns.prompt])
    if isinstance(prompt, str):
        return prompt, None
    return None, f"the prompt is {kind_of(prompt)}, not a string"


def _response(
    record: Record, columns: Columns, prompt: PromptInput | None
) -> tuple[ResponseInput | None, str | None]:
    """What follows the prompt, None where a row has nothing, and what is wrong with it."""
    response = None if columns.response is None else _plain(record.columns.get(columns.response))
    if response is None:
        missing = columns.score == "response" and not ends_with_assistant(prompt)
        return None, "the row has no response" if missing else None
    if isinstance(response, str):
        return response, None
    if isinstance(response, list) and all(isinstance(token, int) for token in response):
        return response, None
    return None, f"the response is {kind_of(response)}, not a string or token ids"


def _messages(messages: Any) -> tuple[PromptInput | None, str | None]:
    if isinstance(messages, str):  # all that a CSV cell can hold
        try:
            messages = parse_json(messages)
        except ValueError as broken:
            return None, f"the messages are not JSON: {broken}"
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None, "the messages are not a list of objects with role and content"
    return messages, None


def as_text(value: Any) -> str:
    """What JSON has no type for, as text: bytes as UTF-8, or in hex where they are not."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if value is None or isinstance(value, (int, float)):  # most values: asked before the slow questions
        return 8
    if isinstance(value, (list, dict)):
        return len(str(value))
    if isinstance(value, pa.BinaryScalar):  # strings too
        return len(value.as_buffer() or b"")
    if isinstance(value, (pa.ListScalar, pa.StructScalar)):
        return int(pa.repeat(value, 1).nbytes)
    if isinstance(value, (pa.DictionaryScalar, pa.ExtensionScalar)):
        return _size(value.value)
    return 8


def _plain(value: Any) -> Any:
    return value.as_py() if isinstance(value, pa.Scalar) else value
