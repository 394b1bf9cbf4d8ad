"""POST /v1/tuco/score: TuCo of prompts, without a completion. Encoded as CLI and Python do it."""

import asyncio
import json
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tuco_vllm.engine.score_feed import Rows
from tuco_vllm.prompts import PromptEncoder, PromptError, kind_of
from tuco_vllm.records import LAYERS, TucoScore
from tuco_vllm.server import metrics
from tuco_vllm.server.answers import finite_or_null
from tuco_vllm.server.errors import RequestError

router = APIRouter()

Answer = dict[str, Any]

_FIELDS = ("model", "input", "layers", "user")
_CLIENT_GONE = 499


class Scorer(Protocol):
    """What scores token ids: ``engine.serving.ServedEngine``."""

    async def score(self, token_ids: list[int], request_id: str) -> Rows:
        """Norms ``[1, L, 4]`` of a prompt at its last token."""


class ScoreService:
    """What the route needs, kept in ``app.state.tuco``."""

    def __init__(self, scorer: Scorer, encoder: PromptEncoder, models: list[str]) -> None:
        self.models = models
        self._scorer = scorer
        self._encoder = encoder
        self._tokenizing = ThreadPoolExecutor(1)  # a tokenizer serves one thread at a time

    async def answer(self, request: dict[str, Any]) -> Answer:
        """The response to a request's fields; RequestError names the field, and the place in a list."""
        model, inputs, layers = _checked(request, self.models)
        prompts = await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._encode, *inputs)
        name = f"tuco-{uuid.uuid4().hex}"
        tasks = [
            asyncio.create_task(self._scorer.score(ids, f"{name}-{place}"))
            for place, ids in enumerate(prompts)
        ]
        try:
            norms = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        scores = [
            TucoScore.from_norms(rows[0].tolist(), len(ids)) for rows, ids in zip(norms, prompts, strict=True)
        ]
        metrics.SCORED.inc()
        for score in scores:
            metrics.observe_prompt(score.tuco)
        total = sum(map(len, prompts))
        return {
            "id": name,
            "object": "list",
            "model": model,
            "data": [_entry(place, score, layers) for place, score in enumerate(scores)],
            "usage": {"prompt_tokens": total, "total_tokens": total},
        }

    def _encode(self, inputs: list[Any], several: bool) -> list[list[int]]:
        encoded = []
        for place, prompt in enumerate(inputs):
            try:
                encoded.append(self._encoder.encode(prompt).token_ids)
            except PromptError as error:
                where = f"input[{place}]" if several else "input"
                raise RequestError(f"{where}: {error}", where) from error
        return encoded


@router.post("/v1/tuco/score")
async def score(request: Request) -> Response:
    """Score ``input``: a string, token ids, a chat, or a list of these."""
    service: ScoreService = request.app.state.tuco
    try:
        try:
            fields = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise RequestError("the body is not JSON", "body") from None
        if not isinstance(fields, dict):
            raise RequestError(f"the body is {kind_of(fields)}, not an object", "body")
        answer = await _while_connected(request, service.answer(fields))
    except RequestError as error:
        return error.response()
    return JSONResponse(answer) if answer is not None else Response(status_code=_CLIENT_GONE)


def _checked(request: dict[str, Any], models: list[str]) -> tuple[str, tuple[list[Any], bool], bool]:
    """(model, (inputs, whether they came in a list), layers) of a request's fields."""
    for field in request:
        if field not in _FIELDS:
            raise RequestError(f"{field} is not known here: there are {', '.join(_FIELDS)}", field)
    model = request.get("model")
    if model is None:
        model = models[0]
    if not isinstance(model, str):
        raise RequestError(f"model is {kind_of(model)}, not a string", "model")
    if model not in models:
        raise RequestError(f"The model `{model}` does not exist.", "model", status=404)
    layers = request.get("layers", True)
    if not isinstance(layers, bool):
        raise RequestError(f"layers is {kind_of(layers)}, not a boolean", "layers")
    if "input" not in request:
        raise RequestError("input is missing: a string, token ids, messages, or a list of these", "input")
    value = request["input"]
    if isinstance(value, list):
        if not value:
            raise RequestError("input is an empty list", "input")
        if isinstance(value[0], str | list):
            return model, (value, True), layers
    return model, ([value], False), layers


def _entry(place: int, score: TucoScore, layers: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "object": "tuco.score",
        "index": place,
        "tuco": finite_or_null(score.tuco),
        "preco": finite_or_null(score.preco),
        "prompt_tokens": score.num_prompt_tokens,
    }
    if layers:
        entry["layers"] = {name: finite_or_null(getattr(score, name)) for name in LAYERS}
    return entry


async def _while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """The result of ``work``; None, and ``work`` cancelled, if the client leaves first."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result, gone = asyncio.create_task(work), asyncio.create_task(leaves())
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        return result.result() if result.done() else None
    finally:
        result.cancel()
        gone.cancel()
