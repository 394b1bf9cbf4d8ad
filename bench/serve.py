"""What alpha and scores cost a server: ours against a stock FT server, over HTTP, streaming.

    python bench/serve.py [--shape gqa] [--rounds 3] [--requests 256] [--concurrency 64]

Physics. Generating is prefill plus one forward a token. A plain request runs FT alone through our server
too: what it can lose is the layer of HTTP around vLLM's own (goal 0.98 of stock). A scored request adds PT's
keys and values for its tokens and one row of PT's layers a token; where decoding is bound by reading weights,
as on a GPU, that row reads all of PT's, so a scored decode step nears two. A steered request runs PT on all
of its rows: two forwards a token, so 0.5 of stock is the most. How many *different* alphas share a batch
costs nothing: alpha is a number a row.

Method. A stock server and ours stay up for the whole run, and take turns under the same load, one busy at a
time: prompts of random tokens, new ones every turn, so the prefix cache helps nobody. Load comes from vLLM's
own client (``vllm.benchmarks``), through a semaphore of ``--concurrency``. Ratios are taken within a round,
then their median. Requests are greedy and of fixed length.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import provenance
from contenders import set_environment
from models import SHAPES, SMOKE_SHAPES, VOCAB_SIZE, write_pair
from rich.console import Console
from rich.table import Table

from tuco_vllm.demo import FT as TOKENIZER_SOURCE

LOADS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # name: (server, number of different alphas, what each request says besides its alpha)
    "stock": ("stock", 0, {}),
    "plain": ("ours", 0, {}),
    "scored": ("ours", 0, {"tuco": True}),
    "1 alpha": ("ours", 1, {}),
    "8 alphas": ("ours", 8, {}),
    "64 alphas": ("ours", 64, {}),
    "256 alphas": ("ours", 256, {}),
}
FLOORS = {
    "plain / stock": 0.90,
    "1 alpha / stock": 0.45,
    "64 alphas / 1 alpha": 0.95,
    "256 alphas / 1 alpha": 0.95,
}
Turn = dict[str, Any]


def main() -> None:
    """Measure; a table and a last line of JSON on stdout, a record in bench/results."""
    options = parse()
    set_environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # as servers run
    origin = provenance.provenance()
    shape = (SMOKE_SHAPES if options.smoke else SHAPES)[options.shape]
    with tempfile.TemporaryDirectory() as directory:
        pt, ft = write_pair(shape, Path(directory))
        for name in ("tokenizer.json", "tokenizer_config.json"):  # of the same vocabulary size
            shutil.copy(Path(TOKENIZER_SOURCE) / name, ft)
        servers = {"stock": Server(stock_command(ft), options), "ours": Server(our_command(pt, ft), options)}
        try:
            for server in servers.values():
                server.wait_until_ready()
            turns = measure(servers, options)
        finally:
            for server in servers.values():
                server.stop()
    record = {
        "bench": "serve",
        "shape": options.shape,
        "sizes": asdict(shape),
        "engine_args": engine_flags(options),
        "load": {name: getattr(options, name) for name in ("requests", "concurrency", "prompt", "output")},
        "rounds": options.rounds,
        "turns": turns,
        **evaluate(turns),
    }
    show(record)
    if not options.smoke:
        provenance.append("serve", {**record, "provenance": origin})
    keys = ("bench", "shape", "ratios", "floors")
    print(json.dumps({key: record[key] for key in keys} | {"commit": origin["commit"]}), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="gqa")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each load, 3 at least")
    parser.add_argument("--requests", type=int, default=256, help="requests a turn")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight")
    parser.add_argument("--prompt", type=int, default=48, help="tokens a prompt")
    parser.add_argument("--output", type=int, default=24, help="tokens a completion")
    parser.add_argument("--eager", action="store_true", help="no torch.compile in either server")
    parser.add_argument("--smoke", action="store_true", help="tiny models, one round, nothing recorded")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.requests, options.concurrency, options.eager = 1, 16, 8, True
    elif options.rounds < 3:
        parser.error("a ratio needs 3 rounds at least")
    return options


def engine_flags(options: argparse.Namespace) -> list[str]:
    """What both servers are started with."""
    flags = ["--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(1 << 30)]
    flags += ["--max-num-seqs", str(options.concurrency), "--max-num-batched-tokens", "2048"]
    flags += ["--served-model-name", "ft", "--disable-uvicorn-access-log"]
    return [*flags, "--enforce-eager"] if options.eager else flags


def stock_command(ft: str) -> list[str]:
    """vLLM's own server of FT alone."""
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", ft]


def our_command(pt: str, ft: str) -> list[str]:
    """The same flags, our server."""
    return [str(Path(sys.executable).with_name("tuco")), "serve", "--pt", pt, "--ft", ft]


class Server:
    """One server process and its port. ``stop`` it, whatever happens."""

    def __init__(self, command: list[str], options: argparse.Namespace) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, *address, *engine_flags(options)], stdout=sys.stderr, start_new_session=True
        )

    def wait_until_ready(self, seconds: float = 400) -> None:
        """Until /health answers; RuntimeError if the process ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError("a server ended: its own message is above")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"a server was not ready after {seconds:.0f} s")

    def stop(self) -> None:
        """End it and its engine."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def measure(servers: dict[str, Server], options: argparse.Namespace) -> dict[str, list[Turn]]:
    """Rounds of all loads in turn, after one that warms up."""
    turns: dict[str, list[Turn]] = {name: [] for name in LOADS}
    for round_number in range(options.rounds + 1):
        for place, (name, (server, alphas, body)) in enumerate(LOADS.items()):
            seed = f"{round_number} {place}"
            turn = asyncio.run(one_turn(servers[server].port, alphas, body, seed, options))
            if round_number:
                turns[name].append(turn)
    return turns


async def one_turn(
    port: int, alphas: int, body: dict[str, Any], seed: str, options: argparse.Namespace
) -> Turn:
    """All requests of one turn: tokens/s, and TTFT and ITL in milliseconds."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions

    generator = random.Random(seed)
    gate = asyncio.Semaphore(options.concurrency)

    async def request(index: int, session: Any) -> Any:
        extra = {"temperature": 0.0, **body}
        if alphas:  # K different values in (0, 1), none of them 1
            extra["alpha"] = (index % alphas + 0.5) / alphas
        wanted = RequestFuncInput(
            prompt=[generator.randrange(3, VOCAB_SIZE) for _ in range(options.prompt)],
            api_url=f"http://127.0.0.1:{port}/v1/completions",
            prompt_len=options.prompt,
            output_len=options.output,
            model="ft",
            extra_body=extra,
            ignore_eos=True,
        )
        async with gate:
            return await async_request_openai_completions(wanted, session)

    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        answers = await asyncio.gather(*(request(index, session) for index in range(options.requests)))
        seconds = time.perf_counter() - start
    for answer in answers:
        if not answer.success or answer.output_tokens != options.output:
            raise SystemExit(f"a request failed, nothing is recorded: {answer.error or answer}")
    return {
        "seconds": round(seconds, 4),
        "output_tokens_per_s": round(options.requests * options.output / seconds, 1),
        "ttft_ms": percentiles([answer.ttft for answer in answers]),
        "itl_ms": percentiles([gap for answer in answers for gap in answer.itl]),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(1e3 * cuts[49], 2), "p99": round(1e3 * cuts[98], 2)}


def evaluate(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Throughput ratios, round by round, and whether the floors are met."""
    pairs = [("plain", "stock"), ("scored", "stock"), ("1 alpha", "stock")]
    pairs += [(name, "1 alpha") for name in ("8 alphas", "64 alphas", "256 alphas")]
    ratios = {}
    for fast, slow in pairs:
        values = [b["seconds"] / a["seconds"] for a, b in zip(turns[fast], turns[slow], strict=True)]
        ratios[f"{fast} / {slow}"] = {
            "median": round(median(values), 4),
            "min": round(min(values), 4),
            "max": round(max(values), 4),
        }
    floors = [
        {
            "name": name,
            "floor": least,
            "value": ratios[name]["median"],
            "met": ratios[name]["median"] >= least,
        }
        for name, least in FLOORS.items()
    ]
    return {"ratios": ratios, "floors": floors}


def show(record: dict[str, Any]) -> None:
    """The record for people."""
    load = record["load"]
    table = Table(
        title=f"{record['shape']}, {load['requests']} requests, {load['prompt']} + {load['output']} tokens, "
        f"{load['concurrency']} at once, {record['rounds']} rounds",
        title_justify="left",
    )
    for heading in ("load", "output tokens/s", "TTFT p50", "p99 ms", "ITL p50", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "load" else "right")
    for name, turns in record["turns"].items():
        cells = [
            f"{median(turn[key][cut] for turn in turns):.1f}"
            for key in ("ttft_ms", "itl_ms")
            for cut in ("p50", "p99")
        ]
        speed = median(turn["output_tokens_per_s"] for turn in turns)
        table.add_row(name, f"{speed:,.0f}", *cells)
    console = Console(width=110, highlight=False)
    console.print(table)
    for name, ratio in record["ratios"].items():
        floor = FLOORS.get(name)
        verdict = (
            "" if floor is None else f", floor {floor}: {'met' if ratio['median'] >= floor else 'NOT MET'}"
        )
        console.print(f"{name} {ratio['median']:.3f} ({ratio['min']:.3f} - {ratio['max']:.3f}){verdict}")


if __name__ == "__main__":
    main()
