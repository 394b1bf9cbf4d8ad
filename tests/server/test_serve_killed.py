"""How a server ends. The shared one is killed here, so this file comes last."""

import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest
from server.served import MODEL, Server, parsed


def test_a_dead_engine_is_unhealthy_and_ends_the_server(server):
    [engine] = [child for child in server.children() if "EngineCore" in " ".join(child.cmdline())]
    with server.client() as client:
        engine.kill()
        seen, deadline = set(), time.monotonic() + 30
        while time.monotonic() < deadline and server.process.poll() is None:
            try:
                seen.add(client.get("/health").status_code)
                if 503 in seen:  # a request makes the server notice that it cannot go on
                    body = {"prompt": "a", "tuco": True}
                    assert client.post("/v1/completions", json=body).status_code >= 500
            except httpx.TransportError:
                break
            time.sleep(0.1)
        assert 503 in seen
        assert server.process.wait(30) == 3
    assert "the vLLM engine died" in server.log.read_text()


STARTING = """
import multiprocessing, time, zmq
from tuco_vllm.engine import serving

def engine():
    time.sleep(600)

def start(*_, **__):
    child = multiprocessing.get_context("spawn").Process(target=engine)
    child.start()
    print(child.pid, flush=True)
    with zmq.Context() as context, context.socket(zmq.PULL) as sock:
        sock.bind("inproc://never")
        while not sock.poll(600_000):
            pass

if __name__ == "__main__":
    serving.compat.setup_server = start
    serving.serve(None, None)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start_and_its_engine(tmp_path, number):
    """Without an engine: a child process, and the poll that waits for it."""
    script = tmp_path / "start.py"
    script.write_text(STARTING)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        child = psutil.Process(int(process.stdout.readline()))
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    child.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_end_all_processes_of_a_start(pair_dirs, tmp_path, number):
    starting = Server(pair_dirs("llama", "float32"), tmp_path / "starting")
    while not any("spawn_main" in " ".join(child.cmdline()) for child in starting.children()):
        time.sleep(0.05)
    time.sleep(1)  # the import of its main module
    assert starting.stop(number) == (-number if number == signal.SIGKILL else 128 + number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_all_processes_once_requests_have_finished(pair_dirs, tmp_path, number):
    running = Server(pair_dirs("llama", "float32"), tmp_path / "running", "--shutdown-timeout=100")
    running.wait()
    body = {"model": MODEL, "prompt": "a", "n": 40, "max_tokens": 200, "ignore_eos": True}
    body |= {"stream": True, "tuco": True}  # more than fits between us: it does not end before we read it
    with running.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        running.process.send_signal(number)
        while httpx.get(f"{running.url}/health").status_code == 200:
            time.sleep(0.01)
        refused = [httpx.get(f"{running.url}/health"), running.post("/v1/completions", {"prompt": "a"})]
        refused.append(running.post("/v1/tuco/score", {"input": "a"}))
        for refusal in refused:
            assert refusal.status_code == 503
            assert "shutting down" in refusal.json()["error"]["message"]
        assert httpx.get(f"{running.url}/metrics").status_code == 200
        chunks = parsed("\n".join([first, *lines]))
    tucos = [choice["tuco"] for chunk in chunks for choice in chunk["choices"] if "tuco" in choice]
    assert sum(len(tuco["tokens"]) for tuco in tucos) == 40 * 200
    assert running.stop(number) == 0
