"""alpha and tuco in /openapi.json, where vLLM describes the bodies of its completion routes."""

from typing import Any

from fastapi import FastAPI

from tuco_vllm.server.middleware import STEERABLE
from tuco_vllm.steering import Limits


def describe_fields(app: FastAPI, limits: Limits, *, flags: bool = False) -> None:
    """Have ``app.openapi()``, and so /openapi.json and /docs, list the two fields and say what they do.

    ``flags``: whether the server gives verdicts on scores.
    """
    fields = _fields(limits)
    if flags:
        fields["tuco"]["description"] += _FLAGGED
    without = app.openapi

    def openapi() -> dict[str, Any]:
        document = without()  # FastAPI keeps it: all but the first time the fields are there already
        for path in STEERABLE:
            body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
            schema["properties"].update(fields)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


_FLAGGED = (
    " Its `flagged` says whether the choice's score is beyond the threshold that was calibrated for prompts "
    "of its form and length; null where none was. A stream says it in a choice's first scored chunk, "
    "or in its last where thresholds are of responses."
)


def _fields(limits: Limits) -> dict[str, Any]:
    number = {"type": "number", "minimum": limits.lowest, "maximum": limits.highest}
    layer: dict[str, Any] = {"type": "integer", "minimum": 0}
    if limits.num_layers is not None:
        layer["maximum"] = limits.num_layers - 1
    by_layers = {
        "type": "object",
        "properties": {
            "value": number,
            "layers": {"type": "array", "items": layer, "minItems": 2, "maxItems": 2},
        },
        "required": ["value", "layers"],
        "additionalProperties": False,
    }
    return {
        "alpha": {
            "title": "Alpha",
            "description": "The fine-tuned part of every layer is scaled by it: 1 is the fine-tuned model, "
            "0 the pre-trained layers. With `layers`, from the first to the last, both included and counted "
            "from 0, the others are the fine-tuned model's.",
            "anyOf": [number, by_layers, {"type": "null"}],
            "default": 1,
        },
        "tuco": {
            "title": "Tuco",
            "description": "Whether each choice of the answer gets a `tuco`: the prompt's TuCo, one for "
            'each token, and with "layers" the norms of every layer.',
            "anyOf": [{"type": "boolean"}, {"const": "layers"}, {"type": "null"}],
            "default": False,
        },
    }
