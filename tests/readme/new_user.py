"""A new user: an empty home, an empty directory, the installed command. README's blocks run there.

Two at a time, for most of a block is an engine's start, on one core. A block needs little of another: the
variables come first, what reads the demo's scores waits for them, and what asks a server stands behind it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from readme.blocks import Block
from server.served import free_port

from tuco_vllm.demo import PT

ROOT = Path(__file__).parents[2]
SECONDS = 400
_ASSIGNMENT = re.compile(r"^[A-Z]+=")
_SHARED = "tuco-demo"
"""What the demo writes, and other blocks read."""
_HOST = "localhost:8000"


@dataclass
class Ran:
    """What became of a command."""

    code: int
    out: str
    err: str = ""


class NewUser:
    """``home`` and ``directory`` are empty."""

    def __init__(self, home: Path, directory: Path) -> None:
        self.directory = directory
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_HOME", "COLUMNS"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**inherited, "HOME": str(home), "PATH": path}
        self.port, self.assignments, self.ran = free_port(), "", dict[str, list[Ran]]()
        self._server: subprocess.Popen[bytes] | None = None

    def run(self, blocks: Iterable[Block]) -> None:
        """All blocks that are to be run; ``ran`` has what became of each, by name."""
        blocks = [block for block in blocks if block.skipped is None]
        place = next((n for n, block in enumerate(blocks) if block.serves), len(blocks))
        first, served = blocks[:place], blocks[place:]
        for block in filter(assigns, first):
            self._terminal(block)
        terminal = [block for block in first if block.kind == "console" and not assigns(block)]
        scripts = [block for block in first if block.kind == "python"]
        try:
            with ThreadPoolExecutor(2) as two:
                demo = two.submit(self._terminal, terminal[0])
                tasks = [demo, two.submit(self._as_it_stands, scripts[0])]
                if served:
                    tasks.insert(1, two.submit(self._serve_and_ask, served))
                for block in terminal[1:]:
                    ready = [demo] if any(_SHARED in command.text for command in block.commands) else []
                    tasks.append(two.submit(self._terminal, block, ready))
                if scripts[1:]:
                    tasks.append(two.submit(self._in_one_process, scripts[1:]))
                for task in tasks:
                    task.result()
        finally:
            self.stop()

    def _terminal(self, block: Block, ready: Iterable[Future[None]] = ()) -> None:
        for other in ready:
            other.result()
        self.ran[block.name] = [self._command(command.text) for command in block.commands]

    def _command(self, text: str) -> Ran:
        if _ASSIGNMENT.match(text):
            self.assignments += f"{text}\n"
        command = "\n".join(recipe(text)).replace(_HOST, f"localhost:{self.port}")
        return self._finished(["bash", "-euc", self.assignments + command])

    def _serve_and_ask(self, served: list[Block]) -> None:
        for block in served:
            if block.serves:
                self._serve(block)
            elif block.kind == "python":
                self._as_it_stands(block)
            else:
                self._terminal(block)
        self.stop()

    def _as_it_stands(self, block: Block) -> None:
        script = self._script(block)
        # What shap, umap or librosa bring: vLLM would neither start nor end its engine in such a process
        # (plugin.py, death_watch.py).
        script.write_text(f"import numba\n{script.read_text()}")
        self.ran[block.name] = [self._finished([sys.executable, str(script)])]

    def _in_one_process(self, blocks: list[Block]) -> None:
        """Scripts whose engines live in one process, one after the other: each but the first starts in two
        seconds (``engines``)."""
        end = "-- end of a script --"
        lines = ["import runpy, torch", "torch.set_num_threads(1)"]
        for block in blocks:
            lines += [f"runpy.run_path({str(self._script(block))!r}, run_name='__main__')", f"print({end!r})"]
        script = self.directory / "scripts.py"
        script.write_text("\n".join(lines))
        done = self._finished([sys.executable, str(script)], VLLM_ENABLE_V1_MULTIPROCESSING="0")
        outs = done.out.split(f"{end}\n")
        for block, out in zip(blocks, outs, strict=False):
            last = block is blocks[-1] or len(outs) <= len(blocks)
            self.ran[block.name] = [Ran(done.code if last else 0, out, done.err)]

    def _script(self, block: Block) -> Path:
        script = self.directory / f"{re.sub(r'[^a-z0-9]+', '_', block.name.lower())}.py"
        script.write_text(block.commands[0].text.replace(_HOST, f"localhost:{self.port}"))
        return script

    def _serve(self, block: Block) -> None:
        [command] = block.commands
        text = command.text.replace("--port 8000", f"--port {self.port}")
        log = self.directory / "server.log"
        with log.open("w") as stream:
            self._server = subprocess.Popen(
                ["bash", "-euc", f"{self.assignments}exec {text}"],
                cwd=self.directory,
                env=self.environment,
                stdout=stream,
                stderr=stream,
            )
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                httpx.get(f"http://{_HOST.replace('8000', str(self.port))}/health").raise_for_status()
                self.ran[block.name] = [Ran(0, "")]
                return
            except httpx.HTTPError:
                time.sleep(0.2)
        self.ran[block.name] = [Ran(self._server.poll() or 1, "", log.read_text()[-3000:])]

    def stop(self) -> None:
        """End the server."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            self._server.wait(60)

    def _finished(self, command: list[str], **environment: str) -> Ran:
        try:
            done = subprocess.run(
                command,
                cwd=self.directory,
                env=self.environment | environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Ran(-1, "", f"not done after {SECONDS} s: {command}")
        return Ran(done.returncode, done.stdout, done.stderr)


def assigns(block: Block) -> bool:
    """Whether it sets variables for the blocks behind it."""
    return all(_ASSIGNMENT.match(command.text) for command in block.commands)


def recipe(command: str) -> list[str]:
    """What a command runs: of `make TARGET` that target's recipe, by the installed commands."""
    found = re.fullmatch(r"make (\w+)", command)
    if not found:
        return [command]
    makefile = (ROOT / "Makefile").read_text()
    lines = re.search(rf"^{found[1]}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lines is not None, f"the Makefile has no target {found[1]}"
    return [line.strip().replace("$(VENV)/bin/", "") for line in lines[1].splitlines()]


def place_adapter(made: str, directory: Path) -> None:
    """Let the hub id of README's adapter be a directory, which wins."""
    target = directory / "org" / "adapter"
    target.parent.mkdir()
    target.symlink_to(made)


BASE = str(PT)
"""What that adapter is one of."""
