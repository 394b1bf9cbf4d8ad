"""What an engine said of a question -> rows of ``answers-*.parquet``, the schema included.

One row a question, alpha and range of layers:

    row, dataset                 the question's number in the sweep; "main" or "utility"
    id, task, group              of the data
    question                     equal for questions whose tokens are
    alpha, first_layer, last_layer   layers included, from 0
    answer, prediction, correct  options by number; the answer of the model is the most probable first token
    option_logps, mass           log p of every option's first token as the next one, and the sum of their p
    error                        null, or why there is no prediction
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from tuco_vllm.sweep.grid import Point
from tuco_vllm.sweep.question import Question

MAIN, UTILITY = "main", "utility"

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "dataset": pa.string(),
        "id": pa.string(),
        "task": pa.string(),
        "group": pa.string(),
        "question": pa.string(),
        "alpha": pa.float64(),
        "first_layer": pa.int32(),
        "last_layer": pa.int32(),
        "answer": pa.int32(),
        "prediction": pa.int32(),
        "correct": pa.bool_(),
        "option_logps": pa.list_(pa.float32()),
        "mass": pa.float64(),
        "error": pa.string(),
    }
)
"""All columns are there in every part, whatever its rows hold."""


def answer_row(
    number: int,
    dataset: str,
    question: Question,
    point: Point,
    *,
    digest: str | None = None,
    logps: Sequence[float] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """One row. ``logps`` are the options'; without them ``error`` says why."""
    judged = judgement(logps, question.answer) if logps is not None and error is None else {"error": error}
    return {
        **dict.fromkeys(SCHEMA.names),
        "row": number,
        "dataset": dataset,
        "id": question.id,
        "task": question.task,
        "group": question.group,
        "question": digest,
        "alpha": point.alpha,
        "first_layer": point.first,
        "last_layer": point.last,
        "answer": question.answer,
        **judged,
    }


def judgement(logps: Sequence[float], answer: int | None) -> dict[str, Any]:
    """The columns that follow from log-probabilities. Of equal ones the first option is the prediction."""
    if any(math.isnan(logp) for logp in logps):
        return {"error": "log p of an option is not a number: a model overflows under this alpha"}
    mass = math.fsum(math.exp(min(logp, 0.0)) for logp in logps)
    if not mass:
        return {"error": "no option has any probability: all log p are minus infinity or near it"}
    prediction = max(range(len(logps)), key=logps.__getitem__)
    return {
        "prediction": prediction,
        "correct": prediction == answer,
        "option_logps": list(logps),
        "mass": mass,
    }


def table_of(rows: Iterable[dict[str, Any]], metadata: dict[str, str]) -> pa.Table:
    """Rows as a part's table."""
    return pa.Table.from_pylist(list(rows), SCHEMA.with_metadata(metadata))
