"""What a completion request asks of us, read from its body before vLLM sees it, and the body for vLLM.

``alpha`` and ``tuco`` stand in the request itself or in its ``vllm_xargs``; vLLM is handed both in
``vllm_xargs``, which end up in ``SamplingParams.extra_args``. Values are judged here: vLLM's request models
would make 1 of ``true`` and let NaN pass. ``vllm_xargs`` take strings, numbers and lists, so that an alpha by
layers, an object, is handed on as a number and its layers.
"""

import json
from contextlib import suppress
from typing import Any, NamedTuple

from tuco_vllm.errors import InputError
from tuco_vllm.server.errors import RequestError
from tuco_vllm.steering import (
    ALPHA,
    ALPHA_LAYERS,
    ANY_NUMBER,
    PLAIN,
    ROWS,
    TUCO,
    Limits,
    Scale,
    Steering,
    parse_scale,
    parse_tuco,
    steering_of,
)

_XARGS, _LAYERS = "vllm_xargs", "layers"

_OURS = {
    ROWS: "/v1/tuco/score has response and trace",
    ALPHA_LAYERS: f'{ALPHA} may be {{"value": number, "layers": [first, last]}}',
}
"""What only we write, and what to ask for in its place."""
_MARKS = (*(f'"{name}"'.encode() for name in (ALPHA, TUCO, *_OURS)), b"\\u00", b"\0")


class Wish(NamedTuple):
    """A request that names alpha or tuco, and what to know of it when its answer comes back."""

    steering: Steering
    body: bytes
    """The request for vLLM."""
    layers: bool = False
    """Whether the norms are wanted, not only TuCo."""
    only_prompt: bool = False
    """Whether the prompt is echoed and nothing is generated: vLLM's one token is not in the answer."""
    usage: bool = False
    """Whether the client asked a stream for its closing usage chunk."""
    running_usage: bool = False
    """Whether the client asked for usage in every chunk."""


def read_wish(body: bytes, limits: Limits) -> Wish | None:
    """The wish in a request's body; None if it names neither field, or is no JSON object (vLLM refuses it).

    Raises RequestError for values that cannot be served, naming the field.
    """
    request = _parsed(body)
    if request is None:
        return None
    xargs = request.get(_XARGS)
    places = (request, dict(xargs)) if isinstance(xargs, dict) else (request, {})
    _refuse_ours(places)
    if not any(name in place for name in (ALPHA, TUCO) for place in places):
        return None
    if not isinstance(xargs, dict | None):
        raise RequestError(f"{_XARGS} must be an object", _XARGS)
    scale = _one_value(ALPHA, places, lambda value: parse_scale(value, limits), Scale())
    scored, layers = _one_value(TUCO, places, _scored_and_layers, (False, False))
    steering = Steering(scale.alpha, scored, layers=scale.layers)
    for place in places:
        place.pop(ALPHA, None)
        place.pop(TUCO, None)
    if steering != PLAIN:
        if request.get("use_beam_search"):
            raise RequestError(
                "use_beam_search knows neither alpha nor tuco: leave it or them out", "use_beam_search"
            )
        # vllm_xargs hold no booleans.
        wanted = steering.extra_args()
        del wanted[TUCO]
        request[_XARGS] = {**places[1], **wanted, **({TUCO: _LAYERS} if scored else {})}
    elif xargs is not None:
        request[_XARGS] = places[1]
    wish = Wish(steering, b"", layers, bool(request.get("echo")) and request.get("max_tokens") == 0)
    if scored and request.get("stream"):
        wish = _ask_for_counts(request, wish)
    return wish._replace(body=json.dumps(request).encode())


def with_model(body: bytes, name: str) -> bytes:
    """A body that names no model, with this one in it; any other as it is."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(request, dict) or request.get("model"):
        return body
    return json.dumps({**request, "model": name}).encode()


def refuse_elsewhere(body: bytes) -> None:
    """RequestError if a request to a route that knows neither field names one: it is never ignored.

    Looked for where any of vLLM's routes would take them from, ``SamplingParams`` in a request included.
    """
    request = _parsed(body) or {}
    params: Any = request.get("sampling_params")
    extra = params.get("extra_args") if isinstance(params, dict) else None
    places: tuple[Any, ...] = (request, request.get(_XARGS), params, extra)
    _refuse_ours(places)
    for place in places:
        for name in (ALPHA, TUCO) if isinstance(place, dict) else ():
            with suppress(InputError):
                if steering_of({name: place.get(name)}, ANY_NUMBER) == PLAIN:
                    continue
            raise RequestError(
                f"{name} is not known here, but at /v1/completions and /v1/chat/completions", name
            )


def _refuse_ours(places: tuple[Any, ...]) -> None:
    for place in places:
        for name, mend in _OURS.items() if isinstance(place, dict) else ():
            if place.get(name) is not None:
                raise RequestError(f"{name} is no field: {mend}", name)


def _parsed(body: bytes) -> dict[str, Any] | None:
    """The JSON object of a body that may name a field; None if it names none, or is no object."""
    if not _may_name_a_field(body):
        return None
    try:
        request = json.loads(body)
    except RecursionError:
        raise RequestError("the request is nested too deeply", "body") from None
    except ValueError:
        return None
    return request if isinstance(request, dict) else None


def _may_name_a_field(body: bytes) -> bool:
    """Whether parsing is worth while: the names stand there plain, escaped, or in UTF-16 or -32."""
    return any(mark in body for mark in _MARKS)


def _one_value(name: str, places: tuple[dict[str, Any], ...], parse: Any, absent: Any) -> Any:
    """The parsed value of a field that may stand in several places, if they agree; null is absent."""
    given = [place[name] for place in places if place.get(name) is not None]
    try:
        values = [parse(value) for value in given]
    except InputError as error:
        raise RequestError(str(error), name) from error
    if len(values) == 2 and values[0] != values[1]:
        raise RequestError(f"{name} and {_XARGS}.{name} differ: give one of them", name)
    return values[0] if values else absent


def _scored_and_layers(value: Any) -> tuple[bool, bool]:
    return parse_tuco(value), value == _LAYERS


def _ask_for_counts(request: dict[str, Any], wish: Wish) -> Wish:
    """Have every chunk of a stream say how many tokens its choice has by now: so many scores go with it."""
    options = request.get("stream_options")
    options = {} if options is None else options
    if not isinstance(options, dict):
        return wish  # vLLM refuses it
    usage, running = options.get("include_usage"), options.get("continuous_usage_stats")
    if not all(value in (None, True, False) for value in (usage, running)):
        return wish
    request["stream_options"] = {**options, "include_usage": True, "continuous_usage_stats": True}
    return wish._replace(usage=bool(usage), running_usage=bool(usage and running))
