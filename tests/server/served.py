"""`tuco serve` as a process, and what tests do with one: start, ask, end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import tiny_models

KEY = "a-key"
MODEL = "ft"
"""The name of FT's directory."""
START_SECONDS = 240


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """A server of ``pair`` on a port of its own; its log is kept in ``log``."""

    def __init__(self, pair: tuple[str, str], log: Path, *flags: str) -> None:
        self.pair, self.log, self.port = pair, log, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        options = ["--dtype=float32", "--enforce-eager", f"--max-model-len={tiny_models.MAX_LEN}"]
        # Prompts arrive in chunks, beside requests that decode.
        options += ["--kv-cache-memory-bytes=268435456", "--max-num-batched-tokens=96", "--max-num-seqs=64"]
        options += [f"--port={self.port}", f"--api-key={KEY}", "--seed=0"]
        options += ["--block-size=32"]  # the default of 128 would cache none of the tests' prompts
        command = [sys.executable, "-m", "tuco_vllm", "serve", f"--pt={pair[0]}", f"--ft={pair[1]}"]
        # To vLLM this means: load no other plugin. Ours has to get onto the list.
        environment = os.environ | {"VLLM_PLUGINS": "another", "VLLM_LOGGING_LEVEL": "WARNING"}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, *options, *flags], stdout=stream, stderr=stream, env=environment
            )

    def wait(self) -> None:
        """Until it takes requests."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.3)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; returns the exit code. Its processes must have gone too."""
        children = self.children() if self.process.poll() is None else []
        self.process.send_signal(number)
        try:
            code = self.process.wait(60)
            left = psutil.wait_procs(children, timeout=10)[1]
            assert not left, f"still there: {left}"
            return code
        finally:
            for process in children:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()

    def client(self, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    def post(self, path: str, body: Any) -> httpx.Response:
        """``body`` as JSON in Python's spelling, which has NaN and infinity."""
        with self.client() as client:
            headers = {"content-type": "application/json"}
            return client.post(path, content=json.dumps(body), headers=headers)

    def complete(self, **fields: Any) -> Any:
        """The JSON of a good completion."""
        answer = self.post("/v1/completions", {"model": MODEL, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, path: str = "/v1/completions", **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a good stream."""
        answer = self.post(path, {"model": MODEL, "stream": True, **fields})
        assert answer.status_code == 200, answer.text
        return parsed(answer.text)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert found, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in found)


def parsed(text: str) -> list[dict[str, Any]]:
    """The chunks of an event stream that ended well."""
    events = text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]", events[-1]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
