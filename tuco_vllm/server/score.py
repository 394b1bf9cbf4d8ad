"""POST /v1/tuco/score: TuCo of prompts and responses, without a completion. Encoded as CLI and Python do it.

Nothing here keeps the event loop for long, whatever is asked: what may take time is done in threads, and what
has to be done here is done in slices.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter, Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tuco_vllm.adapter import Adapter
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.records import LAYERS, TucoScore
from tuco_vllm.responses import EncodedResponse, encode_with_response, text_offsets
from tuco_vllm.score_requests import EngineInput, engine_inputs, expect_streams
from tuco_vllm.server import metrics
from tuco_vllm.server.answers import finite_or_null
from tuco_vllm.server.checks import Checker
from tuco_vllm.server.errors import RequestError
from tuco_vllm.server.score_body import Asked, ScoreAnswer, ScoreBody, read_body, read_request

router = APIRouter()

_CLIENT_GONE = 499
_TURN_SECONDS = 0.02
"""How long one request's prompts are encoded before those of another have their turn."""
_NUMBERS = ("tuco", "preco", "tuco_l2", "path_tuco", "cosine", "cancellation")
_SLICE = 16
"""How many prompts are handed to the engine at once, in less than a hundredth of a second."""


class Scorer(Protocol):
    """What scores token ids: ``engine.serving.ServedEngine``."""

    async def score(
        self,
        asked: EngineInput,
        request_id: str,
        priority: int,
        headers: Mapping[str, str],
        lora: Any = None,
    ) -> Any:
        """Norms ``[L, 7]`` of a prompt at its last token, RowScores of ScoredTokens; ``headers`` are the HTTP
        request's, ``lora`` is the adapter's that its ``model`` names."""


class Adapters(Protocol):
    """Adapters by their names: ``engine.served_adapters.ServedAdapters``."""

    def __contains__(self, name: object) -> bool: ...

    def request(self, name: str) -> Any:
        """What the engine is told; None where ``name`` is no adapter's."""

    def adapter(self, name: str) -> Adapter | None:
        """Its files; InputError for one that is no plain LoRA."""


class _Encoded(NamedTuple):
    """An input on its way to the engine."""

    inputs: list[EngineInput]
    templated: bool
    response: list[int] | None
    offsets: list[int] | None
    """Where in its text each of the response's tokens begins."""


class ScoreService:
    """What the route needs, kept in ``app.state.tuco``."""

    def __init__(
        self,
        scorer: Scorer,
        encoder: PromptEncoder,
        models: list[str],
        adapters: Adapters | None = None,
        checker: Checker | None = None,
    ) -> None:
        """``models`` are the pair's names, the first for requests that say none."""
        self.models, self.adapters, self.checker = models, adapters, checker
        self._scorer = scorer
        self._encoder = encoder
        self._tokenizing = ThreadPoolExecutor(1)  # a tokenizer serves one thread at a time

    async def answer(self, asked: Asked, headers: Mapping[str, str]) -> bytes:
        """The JSON of the scores; RequestError names the field, and the place in a list."""
        encoded: list[_Encoded] = []
        try:
            expect_streams(self.adapters.adapter(asked.model) if self.adapters else None, asked.more)
        except InputError as error:
            raise RequestError(str(error), "model") from error
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._tokenizing)
        while len(encoded) < len(asked.inputs):
            encoded += await in_thread(self._encode_some, asked, len(encoded))
        name = f"tuco-{headers.get('x-request-id') or uuid.uuid4().hex}"
        if asked.more.relative_reward and not any(each.response for each in encoded):
            raise RequestError("relative_reward is of responses, and no input has one", "relative_reward")
        inputs = [tokens for each in encoded for tokens in each.inputs]
        lora = self.adapters.request(asked.model) if self.adapters else None
        results = await self._score(inputs, name, asked.priority, headers, lora)
        metrics.SCORED.labels(self.models[0]).inc()
        return await asyncio.to_thread(self._answer, name, asked, encoded, results)

    async def _score(
        self, prompts: list[EngineInput], name: str, priority: int, headers: Mapping[str, str], lora: Any
    ) -> list[Any]:
        tasks = []
        try:
            for place, tokens in enumerate(prompts):
                if place % _SLICE == 0:
                    await asyncio.sleep(0)
                work = self._scorer.score(tokens, f"{name}-{place}", priority, headers, lora)
                tasks.append(asyncio.create_task(work))
            return await asyncio.gather(*tasks)
        except InputError as error:  # what a reward needs, and the engine cannot load
            raise RequestError(str(error), "relative_reward") from error
        finally:
            for task in tasks:
                task.cancel()

    def _encode_some(self, asked: Asked, start: int) -> list[_Encoded]:
        """Tokens of the inputs from ``start`` on: of as many as a turn has time for, at least one."""
        encoded: list[_Encoded] = []
        end, rewarded = time.monotonic() + _TURN_SECONDS, asked.more.relative_reward
        for place in range(start, len(asked.inputs)):
            try:
                prompt, response = encode_with_response(
                    self._encoder, asked.inputs[place], asked.responses[place], rewarded=rewarded
                )
            except PromptError as error:
                raise RequestError(f"{asked.place(place)}: {error}", asked.place(place)) from error
            except InputError as error:  # PT's tokenizer
                raise RequestError(str(error), "relative_reward") from error
            answer = None if response is None else response.token_ids
            inputs = engine_inputs(prompt.token_ids, answer, asked.more)
            encoded.append(_Encoded(inputs, prompt.templated, answer, self._offsets(response)))
            if time.monotonic() > end:
                break
        return encoded

    def _offsets(self, response: EncodedResponse | None) -> list[int] | None:
        if response is None:
            return None
        return text_offsets(self._encoder.tokenizer, response.token_ids, response.text)

    def _answer(self, name: str, asked: Asked, encoded: list[_Encoded], results: list[Any]) -> bytes:
        """The whole answer's JSON, score by score: each call of ``json`` keeps all threads waiting."""
        entries, total = [], 0
        answers = iter(results)
        for place, each in enumerate(encoded):
            answered = [next(answers) for _ in each.inputs]
            score = TucoScore.of(answered, each.inputs, each.response, asked.more)
            total += score.num_prompt_tokens + (score.response_tokens or 0)
            metrics.observe_prompt(self.models[0], score.tuco)
            entry = _entry(place, score, asked.layers, each.offsets)
            if self.checker is not None:
                value = getattr(score, self.checker.flags.column)
                flagged = self.checker.judged(each.templated, score.num_prompt_tokens, value, asked.model)
                entry["flagged"] = flagged
            entries.append(json.dumps(entry, separators=(",", ":")))
        head = {"id": name, "object": "list", "model": asked.model}
        usage = {"prompt_tokens": total, "total_tokens": total}
        body = f'{json.dumps(head)[:-1]}, "data": [{",".join(entries)}], "usage": {json.dumps(usage)}}}'
        return body.encode()


async def _only_json(request: Request) -> None:
    """A browser lets a page of anybody's send other types here without asking first."""
    from tuco_vllm.engine import compat  # takes seconds, and is there when vLLM's server is

    await compat.validate_json_request(request)


_SCHEMA = {"content": {"application/json": {"schema": ScoreBody.model_json_schema()}}, "required": True}


@router.post(
    "/v1/tuco/score",
    dependencies=[Depends(_only_json)],
    response_model=ScoreAnswer,
    openapi_extra={"requestBody": _SCHEMA},
)
async def score(raw_request: Request) -> Response:
    """Score ``input``: a string, token ids, a chat, or a list of these."""
    from tuco_vllm.engine import compat

    service: ScoreService = raw_request.app.state.tuco
    gone = Response(status_code=_CLIENT_GONE)
    with metrics.ScoreRequest(service.models[0]) as measured:
        try:
            fields = await read_body(raw_request)
            asked = read_request(fields, service.models, compat.max_completion_prompts, service.adapters)
            work = compat.with_cancellation(compat.load_aware_call(_respond))
            response = await work(asked, raw_request) or gone
        except ClientDisconnect:
            response = gone
        except RequestError as error:
            response = error.response()
        measured.status = response.status_code
    return response


async def _respond(asked: Asked, raw_request: Request) -> Response:
    answer = await raw_request.app.state.tuco.answer(asked, raw_request.headers)
    return Response(answer, media_type="application/json")


def _entry(place: int, score: TucoScore, layers: bool, offsets: list[int] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "object": "tuco.score",
        "index": place,
        **{name: finite_or_null(getattr(score, name)) for name in _NUMBERS},
        "prompt_tokens": score.num_prompt_tokens,
    }
    if layers:
        entry["layers"] = {name: finite_or_null(getattr(score, name)) for name in LAYERS}
    if score.response_tucos is not None:
        mean, tucos = finite_or_null(score.response_tuco), finite_or_null(score.response_tucos)
        entry["response"] = {"mean": mean, "tokens": tucos, "token_ids": score.response_token_ids}
        entry["response"]["text_offsets"] = offsets
        if score.response_logps_ft is not None:
            entry["response"]["logps_ft"] = finite_or_null(score.response_logps_ft)
            entry["response"]["logps_pt"] = finite_or_null(score.response_logps_pt)
    if score.prompt_tucos is not None:
        entry["trace"] = finite_or_null(score.prompt_tucos)
    if score.output_co is not None:
        entry["output_co"] = finite_or_null(score.output_co)
    return entry
