"""`tuco serve`: what is put on top of vLLM's own server, and its start.

Guarded by ``--api-key``, like all of vLLM's under /v1: /v1/tuco/score. Open: /tuco, the page, which asks for
the key and holds no secret; and what vLLM leaves open (/health, /metrics, /version, /ping, /docs, ...).
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from tuco_vllm.config import Checkpoint, ModelPair, resolve_pair
from tuco_vllm.flagging import Flags
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.server import metrics, page, score
from tuco_vllm.server.checks import Checker, expect_dtype, expect_fit
from tuco_vllm.server.drain import Drain, DrainMiddleware
from tuco_vllm.server.middleware import TucoMiddleware
from tuco_vllm.server.openapi import describe_fields
from tuco_vllm.server.score import ScoreService
from tuco_vllm.shared_tokens import SharedTokens
from tuco_vllm.steering import Limits


def serve(pt: str | None, ft: str, flags: Sequence[str], *, limits: Limits, flag: str | None = None) -> None:
    """Serve a pair until SIGINT or SIGTERM; ``flags`` are vLLM's, for its own server.

    ``flag`` is a file of `tuco calibrate`, by which scores are judged. Raises InputError for models, flags
    and calibrations that cannot work, EngineError when vLLM does not start or dies.
    """
    calibration = None if flag is None else Flags.read(flag)
    trust = any(flag.replace("_", "-") == "--trust-remote-code" for flag in flags)
    pair = resolve_pair(pt, ft, trust_remote_code=trust)
    if pair.note:
        print(f"tuco: {pair.note}", file=sys.stderr)
    tokenizer = load_tokenizer(pair.ft.tokenizer_directory, trust_remote_code=trust)
    limits = limits._replace(num_layers=pair.ft.sizes["num_hidden_layers"])
    if calibration is not None:
        expect_fit(calibration, pair)

    # Only now: vLLM takes seconds to import, and what can be refused without it has been.
    from tuco_vllm.engine import serving

    pt_names, names = served_names(pair.pt), served_names(pair.ft)
    named = replace(pair, pt=replace(pair.pt, name=pt_names[0]), ft=replace(pair.ft, name=names[0]))
    arguments = serving.parse_arguments(named, flags, limits)
    own = names if pair.ft.adapter is None else pt_names  # whose weights vLLM serves
    if arguments.served_model_name == own[:1]:  # not --served-model-name, unless it says the same
        arguments.served_model_name = own
    if arguments.chat_template is not None:
        tokenizer.chat_template = serving.read_chat_template(arguments.chat_template)
    encoder = _encoder(pair, tokenizer, arguments, trust)

    if calibration is not None:
        alias = {"half": "float16", "float": "float32"}
        expect_dtype(calibration, alias.get(arguments.dtype, arguments.dtype))
        _checker(calibration, encoder, arguments, [])
    _warn_if_open(arguments)

    def extend(app: FastAPI, engine: serving.ServedEngine) -> None:
        drain = Drain()
        engine.let_finish(drain.finish)
        encoder.max_model_len = engine.max_model_len - 1  # vLLM wants room for one token
        service = _score_service(
            app, engine, encoder, arguments, None if pair.ft.adapter is None else names[0]
        )
        if calibration is not None:
            _judge(service, calibration, engine, encoder, arguments)
        install(
            app,
            pair,
            service,
            drain,
            limits=limits,
            force_usage=arguments.enable_force_include_usage,
            fingerprint=app.state.openai_serving_completion.system_fingerprint,
        )
        scheme = "https" if arguments.ssl_certfile else "http"
        where = arguments.uds or f"{scheme}://{arguments.host}:{arguments.port}, a page at /tuco"
        print(f"tuco: serving {app.state.tuco.models[0]} at {where}", file=sys.stderr, flush=True)

    serving.serve(arguments, extend)


def _encoder(pair: ModelPair, tokenizer: Any, arguments: Namespace, trust_remote_code: bool) -> PromptEncoder:
    encoder = PromptEncoder(
        tokenizer,
        vocab_size=pair.ft.config.get("vocab_size"),
        template_variables=arguments.default_chat_template_kwargs,  # of chat completions as well
        mend="shorten it, or serve it with a larger --max-model-len",
    )
    encoder.shared = SharedTokens(pair, tokenizer, trust_remote_code=trust_remote_code)
    return encoder


def _score_service(
    app: FastAPI, engine: Any, encoder: PromptEncoder, arguments: Namespace, adapter: str | None
) -> ScoreService:
    """With the names that requests may use: the pair's own first, which may be an ``adapter``'s."""
    from tuco_vllm.engine.served_adapters import ServedAdapters

    names = list(arguments.served_model_name)
    if adapter is None:
        return ScoreService(engine, encoder, names)
    adapters = ServedAdapters(app.state.openai_serving_models.lora_requests)
    return ScoreService(engine, encoder, [adapter, *names], adapters)


def _judge(
    service: ScoreService, flags: Flags, engine: Any, encoder: PromptEncoder, arguments: Namespace
) -> None:
    """Have all scores judged by a calibration. InputError where they are of another dtype."""
    expect_dtype(flags, engine.dtype)
    own = service.models if service.adapters is None else service.models[:1]
    service.checker = _checker(flags, encoder, arguments, own)
    engine.score_all()
    for warning in service.checker.warnings():
        print(f"tuco: warning: {warning}", file=sys.stderr, flush=True)


def _checker(flags: Flags, encoder: PromptEncoder, arguments: Namespace, models: list[str]) -> Checker:
    """A calibration for requests that name one of ``models``. InputError where it fits no prompt at all."""
    chats = "" if arguments.default_chat_template_kwargs else encoder.template_sha256 or ""
    checker = Checker(flags, chats, models, models[0] if models else "")
    checker.warnings()
    return checker


def _warn_if_open(arguments: Namespace) -> None:
    """Say so where other machines reach the server and it asks for no key."""
    keys = arguments.api_key or [os.environ.get("VLLM_API_KEY")]
    if any(keys) or arguments.uds or arguments.host == "localhost":
        return
    with suppress(ValueError):  # a name, of whatever address
        if ip_address(arguments.host).is_loopback:
            return
    print(
        f"tuco: warning: listening at {arguments.host or 'all addresses'} without --api-key: "
        "whoever reaches the port can use the model",
        file=sys.stderr,
        flush=True,
    )


def served_names(ft: Checkpoint) -> list[str]:
    """What requests may call the model unless ``--served-model-name`` says otherwise; the first is reported.

    A hub id is itself. A directory goes by its own name, which says nothing of the machine, and by the path
    that was given.
    """
    path = Path(os.path.abspath(os.path.expanduser(ft.name)))
    own = path.name if path.is_dir() else ""
    return list(dict.fromkeys([own or ft.name, ft.name]))


def install(
    app: FastAPI,
    pair: ModelPair,
    service: ScoreService,
    drain: Drain,
    *,
    limits: Limits,
    force_usage: bool = False,
    fingerprint: str | None = None,
) -> None:
    """Add alpha, tuco, our routes, the pair's names and the drain to vLLM's app.

    The other arguments are ``TucoMiddleware``'s.
    """
    model_name = service.models[0]
    metrics.show(model_name, flags=service.checker is not None)
    # Innermost: behind vLLM's check of the API key. vLLM has built its layers already: they are built again.
    app.user_middleware += [
        Middleware(DrainMiddleware, drain=drain),
        Middleware(
            TucoMiddleware,
            limits=limits,
            model_name=model_name,
            force_usage=force_usage,
            fingerprint=fingerprint,
            default_model=None if service.adapters is None else model_name,
            checker=service.checker,
        ),
    ]
    app.middleware_stack = None
    app.state.tuco = service
    app.include_router(score.router)
    app.include_router(page.router)
    describe_fields(app, limits, flags=service.checker is not None)
    bounds = {"min_alpha": limits.lowest, "max_alpha": limits.highest}
    names = {"pt": pair.pt.name, "ft": pair.ft.name, **bounds}

    async def models(request: Request) -> JSONResponse:
        """vLLM's list of models; each entry says which pair it is."""
        listed: Any = await request.app.state.openai_serving_models.show_available_models()
        content = listed.model_dump()
        for entry in content["data"]:
            entry["tuco"] = names
            if service.adapters is not None:  # of the base PT is both
                own = entry["id"] if entry["id"] in service.adapters else pair.pt.name
                entry["tuco"] = {**names, "ft": own}
        content["data"].sort(key=lambda entry: entry["id"] != model_name)  # who takes the first takes FT
        return JSONResponse(content)

    app.router.routes.insert(0, APIRoute("/v1/models", models, methods=["GET"]))
