"""Rows by what a column of the input says of them, as people name it: COLUMN=VALUE."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tuco_vllm.errors import InputError


def rows_with(batch: pa.RecordBatch, column: str, values: Sequence[str]) -> NDArray[np.bool_]:
    """Where ``column`` has one of ``values``: ``[rows]``, False everywhere in a batch that lacks it.

    Values are read as the column's type has them. InputError where it has no such values.
    """
    if column not in batch.schema.names:
        return np.zeros(batch.num_rows, np.bool_)
    array = batch[column]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_nested(array.type):
        raise InputError(f"column {column!r} holds lists or structs: name one with a value a row")
    try:
        wanted = pa.array([_parsed(value, array.type) for value in values], array.type)
        if pa.types.is_null(array.type):
            return np.zeros(batch.num_rows, np.bool_)
        return pc.is_in(array, value_set=wanted).to_numpy(zero_copy_only=False)
    except (ValueError, KeyError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"column {column!r} holds {array.type}, not {' or '.join(values)}") from error


def _parsed(text: str, arrow: pa.DataType) -> Any:
    """What a column of that type would hold for ``text``; ValueError or KeyError where it cannot."""
    if pa.types.is_boolean(arrow):
        return {"true": True, "false": False}[text.lower()]
    if pa.types.is_integer(arrow):
        return int(text)
    if pa.types.is_floating(arrow):
        number = float(text)
        return number if math.isfinite(number) else _no()
    if pa.types.is_null(arrow):
        return None
    return text if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) else _no()


def _no() -> Any:
    raise ValueError
