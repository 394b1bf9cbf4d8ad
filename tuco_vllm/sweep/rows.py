"""JSONL: lines -> questions, in the format of ours and in that of Anthropic's model-written evaluations.

``jsonl``, an object a line:

    prompt    string, asked as it is; or ``messages``, a chat, through FT's template
    options   two strings or more, each a text that may follow; their first tokens have to differ
    answer    the right one: its number from 0, or its text
    task      string; default: the file's name without extension
    group     string, optional: what several tasks have in common
    id        string or number, optional; default: file name and line

``mwe-jsonl``, the files of Perez et al. (2022): ``question``, ``answer_matching_behavior`` and
``answer_not_matching_behavior`` (" Yes" or " No"). The task is the file's name, and "right" means that the
answer matches the behaviour. The prompt is

    Human: {question}

    Assistant:

with the answers as they are; in a chat the question is the user's turn, and the answers have no space before
them. They always stand in one order, whichever matches: were two tokens equally probable, the first counts as
the answer, and it must not be the matching one each time.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuco_vllm.prompt_checks import ends_with_assistant, kind_of
from tuco_vllm.records import PromptInput
from tuco_vllm.sweep.files import DataFile
from tuco_vllm.sweep.question import (
    MOST_OPTIONS,
    Question,
    RowError,
    question_or_error,
    text_in,
    user_turn,
)

_MATCHING, _OTHER = "answer_matching_behavior", "answer_not_matching_behavior"
_LONGEST_NAME = 200
"""Characters of a task, a group or an id."""


def jsonl_questions(files: Sequence[DataFile], *, chat: bool) -> list[Question]:
    """Rows of our own format; with ``chat`` a ``prompt`` is the user's turn."""
    return _questions(files, lambda row, name, task: _own(row, name, task, chat))


def mwe_questions(files: Sequence[DataFile], *, chat: bool) -> list[Question]:
    """Rows of model-written evaluations."""
    return _questions(files, lambda row, name, task: _written_by_models(row, name, task, chat))


def _questions(
    files: Sequence[DataFile], read: Callable[[dict[str, Any], str, str], Question]
) -> list[Question]:
    questions = []
    for file in files:
        for number, line in _lines(file):
            name = f"{file.name}:{number}"

            def of_line(line: bytes = line, name: str = name, task: str = file.task) -> Question:
                return read(_object(line), name, task)

            questions.append(question_or_error(name, file.task, of_line))
    return questions


def _lines(file: DataFile) -> Iterator[tuple[int, bytes]]:
    """The lines with something in them, and their numbers from 0."""
    data = file.data.removeprefix(b"\xef\xbb\xbf")
    return ((number, line) for number, line in enumerate(data.split(b"\n")) if line.strip())


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError("the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"the line is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowError(f"the line is {kind_of(value)}, not an object")
    return value


def _own(row: dict[str, Any], name: str, task: str, chat: bool) -> Question:
    options = _options(row.get("options"))
    return Question(
        id=_name(row, "id", name) or name,
        task=_name(row, "task", task) or task,
        group=_name(row, "group", None),
        prompt=_prompt(row, chat),
        options=options,
        answer=_answer(row.get("answer"), options),
    )


def _prompt(row: dict[str, Any], chat: bool) -> PromptInput:
    messages = row.get("messages")
    if messages is None:
        return user_turn(text_in(row.get("prompt"), "prompt"), chat=chat)
    if row.get("prompt") is not None:
        raise RowError("the row has a prompt and messages: which is asked?")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise RowError("messages is not a list of messages")
    if ends_with_assistant(messages):
        raise RowError("the chat ends with an assistant turn: that is what the options are for")
    return messages


def _options(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RowError(f"options is {kind_of(value)}, not a list of strings")
    if not 2 <= len(value) <= MOST_OPTIONS:
        raise RowError(f"options has {len(value)} entries, and 2 to {MOST_OPTIONS} can be asked")
    return tuple(text_in(option, f"option {place}") for place, option in enumerate(value))


def _answer(value: Any, options: tuple[str, ...]) -> int:
    if type(value) is int:
        if 0 <= value < len(options):
            return value
        raise RowError(f"answer is {value!r:.40}, and options count from 0 to {len(options) - 1}")
    if isinstance(value, str):
        if options.count(value) == 1:
            return options.index(value)
        raise RowError(f"answer {value!r:.40} is not one of the options")
    raise RowError(f"answer is {kind_of(value)}, not the number of an option or its text")


def _name(row: dict[str, Any], name: str, default: str | None) -> str | None:
    value = row.get(name)
    if value is None:
        return default
    if type(value) is int and abs(value) < 1 << 63:
        value = str(value)
    text = text_in(value, name)
    if len(text) > _LONGEST_NAME:
        raise RowError(f"{name} has {len(text)} characters, and {_LONGEST_NAME} are the limit")
    return text


def _written_by_models(row: dict[str, Any], name: str, task: str, chat: bool) -> Question:
    question = text_in(row.get("question"), "question")
    matching, other = (text_in(row.get(each), each) for each in (_MATCHING, _OTHER))
    if matching == other:
        raise RowError(f"{_MATCHING} and {_OTHER} are the same")
    options = sorted((matching, other), reverse=True)  # " Yes" before " No"
    prompt = user_turn(question if chat else f"Human: {question}\n\nAssistant:", chat=chat)
    shown = tuple(option.lstrip() if chat else option for option in options)
    return Question(name, task, None, prompt, shown, options.index(matching))
