"""What POST /v1/tuco/score takes and gives: the schema, and the checks of a body before it costs anything.

Errors name the field, as vLLM's do. The models below are what /openapi.json shows; a body is checked by hand,
because pydantic would coerce, and would list all that a value is not instead of what it is.
"""

from collections.abc import Container
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from tuco_vllm.prompt_checks import kind_of
from tuco_vllm.score_requests import MoreScores
from tuco_vllm.server.errors import RequestError

_MOST_BYTES = 16 << 20
_MOST_VALUES = 1_750_000
_DEAR = 5
"""JSON is parsed in one go, and nothing else happens meanwhile. With lists, objects and keys counted as five
values each, the worst bodies within these limits (350,000 keys; long integers; strings of escapes) take
0.12 to 0.19 s in a server, whose heap vLLM freezes: a number or string 0.1 µs, a list 0.3, a new key 0.5.
``json.loads`` takes up to ten times that for long numbers. Commas, brackets and colons of texts count too."""

Prompt = str | list[int] | list[dict[str, Any]]
Followed = str | list[int]


class ScoreBody(BaseModel):
    """Prompts to score."""

    model_config = ConfigDict(extra="forbid")

    input: Prompt | list[Prompt] = Field(description="A string, token ids, a chat, or a list of these.")
    response: Followed | list[Followed | None] | None = Field(
        None, description="What follows: a string or token ids; for a list of inputs a list of as many."
    )
    trace: bool = Field(False, description="Whether each score brings TuCo at every token of its prompt.")
    output_co: bool = Field(False, description="Whether each score brings OutputCo; a second pass.")
    relative_reward: bool = Field(
        False, description="Whether responses bring both models' log-probabilities; a second pass."
    )
    model: str | None = Field(
        None, description="A served model's name, or an adapter's; the pair's if left out."
    )
    layers: bool = Field(True, description="Whether each score brings the norms of every layer.")
    priority: int = Field(0, description="Lower is earlier, under --scheduling-policy priority.")
    user: str | None = Field(None, description="Anything; it is not read.")


class LayerNorms(BaseModel):
    """Norms after each layer; null where a model overflowed, or there is no cosine."""

    ptc_norms: list[float | None]
    ftc_norms: list[float | None]
    cum_ptc_norms: list[float | None]
    cum_ftc_norms: list[float | None]
    cosines: list[float | None]


class ResponseScores(BaseModel):
    """TuCo of each of a response's tokens and their mean; where asked for, both models' log-probabilities."""

    mean: float | None
    tokens: list[float | None]
    token_ids: list[int]
    text_offsets: list[int] | None
    """Where each token begins in the response's text, in characters (code points); null where tokens do not
    say the text."""
    logps_ft: list[float | None] | None = None
    logps_pt: list[float | None] | None = None


class Score(BaseModel):
    """One input's score; null where a model overflowed, or there is nothing to divide by."""

    object: str = "tuco.score"
    index: int
    tuco: float | None
    preco: float | None
    tuco_l2: float | None
    path_tuco: float | None
    cosine: float | None
    cancellation: float | None
    prompt_tokens: int
    flagged: bool | None = Field(
        None,
        description="With `--flag`, whether the score is beyond its threshold; null where there is none for "
        "a prompt of that form and length.",
    )
    layers: LayerNorms | None = None
    response: ResponseScores | None = None
    trace: list[float | None] | None = None
    output_co: float | None = None


class Usage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class ScoreAnswer(BaseModel):
    """A score for each input, in their order."""

    id: str
    object: str = "list"
    model: str
    data: list[Score]
    usage: Usage


class Asked(NamedTuple):
    """A request that has passed all checks but those of its prompts."""

    model: str
    inputs: list[Any]
    several: bool
    """Whether the inputs came in a list."""
    responses: list[Any]
    """As many; None where an input has none."""
    layers: bool
    more: MoreScores
    priority: int

    def place(self, index: int) -> str:
        """The name of an input in an error."""
        return f"input[{index}]" if self.several else "input"


async def read_body(request: Request) -> Any:
    """The parsed JSON of a body. Raises RequestError: 413 for one too large, which is never held."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= _MOST_BYTES:  # a client that is answered before it has sent all may not read the answer
            parts.append(part)
    if size > _MOST_BYTES:
        raise RequestError(f"the body has over {_MOST_BYTES >> 20} MiB: send several requests", "body", 413)
    body = b"".join(parts)
    if body.count(b",") + _DEAR * sum(map(body.count, (b"[", b"{", b":"))) > _MOST_VALUES:
        raise RequestError(
            f"the body has over {_MOST_VALUES} values, lists, objects and keys counted as {_DEAR} each: "
            "send several requests",
            "body",
            413,
        )
    try:
        return from_json(body)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}", "body") from None


def read_request(
    fields: Any, models: list[str], most_inputs: int, adapters: Container[str] | None = None
) -> Asked:
    """What a body asks for; RequestError names the field that is wrong. ``adapters`` are models as well."""
    if not isinstance(fields, dict):
        raise RequestError(f"the body is {kind_of(fields)}, not an object", "body")
    for field in fields:
        if field not in ScoreBody.model_fields:
            known = ", ".join(ScoreBody.model_fields)
            raise RequestError(f"{field[:40]} is not known here: there are {known}", field)
    model = models[0] if fields.get("model") is None else fields["model"]
    if not isinstance(model, str):
        raise RequestError(f"model is {kind_of(model)}, not a string", "model")
    if model not in models and model not in (adapters or ()):
        raise RequestError(f"The model `{model}` does not exist.", "model", status=404)
    layers, priority = fields.get("layers", True), fields.get("priority", 0)
    more = MoreScores(*(fields.get(name, False) for name in MoreScores._fields))
    for name, value in (("layers", layers), *more._asdict().items()):
        if not isinstance(value, bool):
            raise RequestError(f"{name} is {kind_of(value)}, not a boolean", name)
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= 2**63:
        raise RequestError(f"priority is {kind_of(priority)}, not an integer of 64 bits", "priority")
    if "input" not in fields:
        raise RequestError("input is missing: a string, token ids, messages, or a list of these", "input")
    inputs = fields["input"]
    several = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], str | list)
    if inputs == []:
        raise RequestError("input is an empty list", "input")
    if several and len(inputs) > most_inputs:
        raise RequestError(
            f"input has {len(inputs)} prompts, the limit is {most_inputs}: send several requests, "
            "or set VLLM_MAX_COMPLETION_PROMPTS",
            "input",
        )
    inputs = inputs if several else [inputs]
    responses = _responses(fields.get("response"), len(inputs), several)
    return Asked(model, inputs, several, responses, layers, more, priority)


def _responses(given: Any, count: int, several: bool) -> list[Any]:
    if given is None or not several:
        return [given] * count
    if isinstance(given, list) and len(given) == count:
        return given
    told = f"a list of {len(given)}" if isinstance(given, list) else kind_of(given)
    raise RequestError(f"response is {told}, not a list of {count}, as input is", "response")
