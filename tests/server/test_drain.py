"""The end of a server, around an app of a few lines: who is let in, who is waited for, for how long."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from tuco_vllm.engine.serving import ServedEngine
from tuco_vllm.server.drain import Drain, DrainMiddleware

COMPUTING = ("/v1/completions", "/v1/chat/completions", "/v1/tuco/score", "/v1/responses", "/invocations")
PROBES = ("/health", "/ping")
READABLE = ("/metrics", "/version", "/v1/models", "/tuco")


class Served:
    """Answers 200 to all; a POST's second half waits for ``go``."""

    def __init__(self, root_path: str = "") -> None:
        self.drain, self.go, self.open, self.root_path = Drain(), asyncio.Event(), 0, root_path
        transport = httpx.ASGITransport(DrainMiddleware(self._app, drain=self.drain), root_path=root_path)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://tuco")

    async def _app(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["method"] == "POST":
            self.open += 1
            await self.go.wait()
        await send({"type": "http.response.body", "body": b"whole"})

    async def status(self, method: str, path: str) -> int:
        return (await self.client.request(method, self.root_path + path)).status_code

    async def begin(self, count: int) -> list[asyncio.Task]:
        """So many requests, under way."""
        tasks = [
            asyncio.create_task(self.client.post(self.root_path + "/v1/completions")) for _ in range(count)
        ]
        while self.open < count:
            await asyncio.sleep(0)
        return tasks


@pytest.mark.parametrize("root_path", ["", "/below"])
def test_new_requests_are_refused_with_a_reason_while_old_ones_finish(root_path):
    async def go():
        served = Served(root_path)
        running = await served.begin(3)
        assert [await served.status("GET", path) for path in PROBES + READABLE] == [200] * 6
        finish = asyncio.create_task(asyncio.to_thread(served.drain.finish, 60))
        while not served.drain.begun:
            await asyncio.sleep(0.01)
        assert [await served.status("POST", path) for path in COMPUTING] == [503] * 5
        assert [await served.status("GET", path) for path in PROBES] == [503] * 2
        assert [await served.status("GET", path) for path in READABLE] == [200] * 4
        for answer in (
            await served.client.get(root_path + "/health"),
            await served.client.post(root_path + COMPUTING[0]),
        ):
            assert "shutting down" in answer.json()["error"]["message"]
            assert answer.json()["error"]["code"] == 503
            assert answer.headers["connection"] == "close"
        assert not finish.done()
        served.go.set()
        assert [(await task).text for task in running] == ["whole"] * 3
        await finish

    asyncio.run(go())


def test_requests_that_do_not_end_are_waited_for_only_so_long():
    async def go():
        served = Served()
        running = await served.begin(1)
        await asyncio.to_thread(served.drain.finish, 0.05)
        assert not running[0].done()
        running[0].cancel()

    asyncio.run(go())


def test_requests_that_fail_or_are_left_are_not_waited_for():
    drain = Drain()

    async def failing(scope, receive, send):
        raise LookupError

    async def go():
        scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
        with pytest.raises(LookupError):
            await DrainMiddleware(failing, drain=drain)(scope, None, None)
        served = Served()
        [running] = await served.begin(1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(served.drain.finish, 600)

    asyncio.run(go())
    drain.finish(600)


class Engine:
    """What a ServedEngine needs of an AsyncLLM; notes how it is shut down."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(
            dtype="float32", max_model_len=8, hf_text_config=SimpleNamespace(num_hidden_layers=2)
        )
        self.vllm_config = SimpleNamespace(lora_config=None)
        self.output_processor = SimpleNamespace(add_request=None, process_outputs=None, request_states={})
        self.calls: list[tuple[str, float]] = []

    def shutdown(self, timeout: float) -> None:
        self.calls.append(("engine", timeout))


def test_the_engine_stops_after_the_requests_with_what_is_left_of_the_time():
    engine = Engine()
    ServedEngine(engine).let_finish(lambda seconds: engine.calls.append(("requests", seconds)))
    engine.shutdown(timeout=100)
    engine.shutdown(
        timeout=7
    )  # vLLM does so once more when it leaves, on the event loop: nothing may wait there
    assert [who for who, _ in engine.calls] == ["requests", "engine", "engine"]
    assert engine.calls[0][1] == 100
    assert 0 < engine.calls[1][1] <= 100
    assert engine.calls[2][1] == 7


def test_without_a_timeout_nothing_is_waited_for():
    engine, drain = Engine(), Drain()
    assert drain.admit()
    ServedEngine(engine).let_finish(drain.finish)
    engine.shutdown(timeout=0)
    assert engine.calls == [("engine", 0)]
    assert not drain.admit()
