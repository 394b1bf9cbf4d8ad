"""vLLM's HTTP server with a pair in it: its flags, its life, and what our routes ask of its engine.

The steps are those of vLLM's own ``run_server``, which has no place where an app can be added to. The `vllm`
command is no way in either: with the CPU wheel it does not start.
"""

import asyncio
import multiprocessing
import os
import signal
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NoReturn

import uvloop
from vllm import SamplingParams

from tuco_vllm.config import ModelPair
from tuco_vllm.engine import compat
from tuco_vllm.engine.adapter_requests import of_base
from tuco_vllm.engine.arguments import FIXED, alpha_bounds, complete, pair_settings
from tuco_vllm.engine.flag_errors import TLS, flag, reason, refuse_unusable
from tuco_vllm.engine.parent_watch import own_engines
from tuco_vllm.engine.plugin import let_vllm_load_us
from tuco_vllm.engine.row_pieces import received, score_wish
from tuco_vllm.engine.score_feed import ask_for_scores, feed_scores
from tuco_vllm.engine.scorer import expect_heads
from tuco_vllm.engine.served_adapters import add_adapters
from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.score_requests import EngineInput
from tuco_vllm.steering import Limits

_OURS = (*FIXED, "model_tag", "scheduler_cls", "worker_cls", "headless", "api_server_count", "grpc")
"""Flags whose values are ours."""


class ServedEngine:
    """A running AsyncLLM of a pair, as our routes see it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.max_model_len: int = engine.model_config.max_model_len
        self.dtype = str(engine.model_config.dtype).removeprefix("torch.")
        self._num_layers: int = engine.model_config.hf_text_config.num_hidden_layers
        self._has_adapters = engine.vllm_config.lora_config is not None
        self._loading, self._has_heads = asyncio.Lock(), False
        feed_scores(engine.output_processor)

    def score_all(self) -> None:
        """Have all requests scored whose HTTP request is watched, asked for or not."""
        ask_for_scores(self._engine)

    def let_finish(self, finish: Callable[[float], object]) -> None:
        """Have ``finish(seconds)`` called once vLLM is told to end, before it stops the engine.

        It runs in a thread; ``seconds`` is ``--shutdown-timeout``, of which the engine gets what is left.
        """

        def finish_first(timeout: float) -> None:
            del self._engine.shutdown  # vLLM calls it again when it leaves, on its event loop
            end = time.monotonic() + timeout
            finish(timeout)
            self._engine.shutdown(timeout=max(end - time.monotonic(), 0))

        self._engine.shutdown = finish_first

    async def score(
        self,
        asked: EngineInput,
        request_id: str,
        priority: int,
        headers: Mapping[str, str],
        lora: Any = None,
    ) -> Any:
        """Norms ``[L, 7]`` of a prompt at its last token, RowScores of ScoredTokens; EngineError if the
        engine gives none.

        ``priority`` is the request's own, over which its header goes; traces go on from the ``headers``.
        ``lora`` is vLLM's request for an adapter, None for the base.
        """
        if self._has_adapters and (on_base := of_base(asked)) is not None:
            asked, lora = on_base, None
        wish, token_ids = score_wish(asked)
        if wish.rows is not None and wish.rows.targets:
            await self._load_heads()
        extra = wish.extra_args()
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, extra_args=extra)
        with suppress(KeyError, ValueError):  # as vLLM takes it
            priority = int(headers["x-vllm-priority"])
        outputs = self._engine.generate(
            compat.tokens_input(token_ids),
            params,
            request_id,
            priority=priority,
            trace_headers=compat.extract_trace_headers(headers) or None,
            lora_request=lora,
        )
        rows = None
        async for output in outputs:
            rows = output.outputs[0].routed_experts
        return received(rows, asked, self._num_layers)

    async def _load_heads(self) -> None:
        """What the relative reward needs, once. InputError where it cannot be loaded."""
        async with self._loading:
            if not self._has_heads:
                expect_heads(await self._engine.collective_rpc("load_heads"))
                self._has_heads = True


def parse_arguments(pair: ModelPair, flags: Sequence[str], limits: Limits) -> Namespace:
    """vLLM's arguments for its server with the pair in it. Raises InputError for flags that cannot be."""
    compat.cli_env_setup()
    let_vllm_load_us()

    class Parser(compat.FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message} (flags: vLLM's documentation of `vllm serve`)")

    parser = compat.make_arg_parser(Parser(prog="tuco serve"))
    parser.set_defaults(host="127.0.0.1")
    try:
        arguments: Namespace = parser.parse_args(list(flags))  # which reads a --config, too
    except (OSError, ValueError) as error:
        raise InputError(f"--config: {error}") from error
    for name in _OURS:
        if getattr(arguments, name) != parser.get_default(name):
            raise InputError(f"{flag(name)} is set by tuco itself: leave it out")
    for name, value in pair_settings(pair, "generate", **alpha_bounds(limits)).items():
        setattr(arguments, name, value)
    complete(arguments, pair)
    if pair.ft.adapter is not None:
        add_adapters(arguments, pair, [pair.pt.name])
    arguments.served_model_name = arguments.served_model_name or [pair.ft.name]
    try:
        compat.validate_parsed_serve_args(arguments)
        compat.configure_logging_from_args(arguments)
    except Exception as error:  # vLLM's own checks of flags raise every kind
        raise InputError(reason(error, arguments)) from error
    refuse_unusable(arguments)
    return arguments


def read_chat_template(template: str) -> str:
    """The template that ``--chat-template`` means: a file's, or the text itself."""
    return str(compat.load_chat_template(template))


def serve(arguments: Namespace, extend: Callable[[Any, ServedEngine], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``extend`` adds to vLLM's app before it takes requests.

    Raises InputError if the address is taken, EngineError if the engine does not start, or dies.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_starting)  # once it serves, vLLM's server has handlers of its own
    own_engines()
    sock = _listen(arguments)
    with sock:
        uvloop.run(_serve(arguments, sock, extend))


def _listen(arguments: Namespace) -> Any:
    """The socket, which nobody listens to yet: what fails here does so before the engine starts."""
    try:
        return compat.setup_server(arguments, reuse_port=False)[1]
    except (OSError, OverflowError) as error:
        where, flag = f"{arguments.host}:{arguments.port}", "--host or --port"
        if arguments.uds:
            where, flag = arguments.uds, "--uds"
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {where} ({why}): choose another {flag}") from error
    except KeyError as error:
        raise InputError(f"--tool-call-parser or --reasoning-parser: {reason(error, arguments)}") from error


def _stop_starting(number: int, _: object) -> NoReturn:
    """End at once, engine included. ZeroMQ's poll, where a start waits, drops exceptions."""
    for child in multiprocessing.active_children():
        compat.kill_process_tree(child.pid)
    os._exit(128 + number)


async def _serve(arguments: Namespace, sock: Any, extend: Callable[[Any, ServedEngine], None]) -> None:
    async with _engine(arguments) as engine:
        tasks = await engine.get_supported_tasks()
        try:
            app = compat.build_app(arguments, tasks, engine.model_config)
            await compat.init_app_state(engine, app.state, arguments, tasks)
        except (ValueError, TypeError) as error:  # what vLLM has to say of flags, but says this late
            raise InputError(reason(error, arguments)) from error
        extend(app, ServedEngine(engine))
        shutdown = await compat.serve_http(
            app, sock=sock, enable_ssl_refresh=arguments.enable_ssl_refresh, **_uvicorn_options(arguments)
        )
    # A server that was told to end leaves its last steps to us; one that ends by itself has lost its engine.
    by_itself = shutdown.__name__ != "shutdown"
    await shutdown
    if by_itself:
        raise EngineError("the vLLM engine died: its log says why")


@asynccontextmanager
async def _engine(arguments: Namespace) -> AsyncIterator[Any]:
    """vLLM's AsyncLLM; its processes end with the context."""
    async with AsyncExitStack() as stack:
        try:
            engine = await stack.enter_async_context(compat.build_async_engine_client(arguments))
        except (ValueError, KeyError) as error:  # a flag's value; no process has started yet
            raise InputError(reason(error, arguments)) from error
        except Exception as error:
            raise EngineError(f"the vLLM engine did not start: {reason(error, arguments)}") from error
        yield engine


def _uvicorn_options(arguments: Namespace) -> dict[str, Any]:
    """What vLLM hands to uvicorn."""
    options = {
        "host": arguments.host,
        "port": arguments.port,
        "log_level": arguments.uvicorn_log_level,
        "access_log": not arguments.disable_uvicorn_access_log,
        "timeout_keep_alive": compat.keep_alive_timeout,
    }
    same = (*TLS, "h11_max_incomplete_event_size", "h11_max_header_count")
    options |= {name: getattr(arguments, name) for name in same}
    if (log_config := compat.get_uvicorn_log_config(arguments)) is not None:
        options["log_config"] = log_config
    return options
