"""The kinds of data that a sweep asks, by their names on the command line."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tuco_vllm.errors import InputError
from tuco_vllm.sweep.files import DataFile, read_files
from tuco_vllm.sweep.mmlu import mmlu_questions, read_examples
from tuco_vllm.sweep.question import Question
from tuco_vllm.sweep.rows import jsonl_questions, mwe_questions

MMLU, MWE, JSONL = DATASETS = ("mmlu-csv", "mwe-jsonl", "jsonl")
_EXTENSIONS = {MMLU: ".csv", MWE: ".jsonl", JSONL: ".jsonl"}

SEED = 0
"""Of the rows that a limit draws."""


@dataclass(frozen=True)
class Asking:
    """How questions are made of rows, whatever the kind."""

    few_shot: tuple[str, ...] = ()
    """Files of examples, for MMLU."""
    shots: int = 5
    """Examples before each question of MMLU."""
    chat: bool = False
    """Whether a question is the user's turn of a chat, rather than plain text."""
    limit: int | None = None
    """So many rows of each task, drawn by ``SEED``; None for all."""


def read_questions(kind: str, inputs: Sequence[str], asking: Asking) -> tuple[list[Question], list[DataFile]]:
    """The questions of a data set, and the files that they were made of.

    Raises InputError for files that cannot be read or are of another kind, for missing examples, and where
    not one row can be asked.
    """
    files = read_files(inputs, _EXTENSIONS[kind])
    more: list[DataFile] = []
    if kind == MMLU:
        if asking.shots and not asking.few_shot:
            raise InputError(
                f"{MMLU} is asked with {asking.shots} examples: name their file by --few-shot, "
                "or say --shots 0"
            )
        more = read_files(asking.few_shot, _EXTENSIONS[MMLU]) if asking.shots else []
        examples = read_examples(more)
        questions = mmlu_questions(files, examples, shots=asking.shots, chat=asking.chat)
    else:
        read = mwe_questions if kind == MWE else jsonl_questions
        questions = read(files, chat=asking.chat)
    if not questions:
        raise InputError(f"there is no row in {inputs[0]!r:.100}: name files with questions")
    if all(question.error for question in questions):
        first = questions[0]
        raise InputError(f"not one of {len(questions)} rows is {kind}: {first.id!r:.100}: {first.error}")
    return drawn(questions, asking.limit), [*files, *more]


def drawn(questions: list[Question], limit: int | None) -> list[Question]:
    """``limit`` questions of each task, in their order; which ones depends on the task alone."""
    if limit is None:
        return questions
    by_task: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        by_task.setdefault(question.task, []).append(place)
    kept: set[int] = set()
    for task, places in by_task.items():
        draw = random.Random(f"{SEED} {task}")
        kept.update(draw.sample(places, min(limit, len(places))))
    return [question for place, question in enumerate(questions) if place in kept]
