"""What a person sees of a job: a live line on a terminal, else a plain one every ten seconds."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from threading import Event, Thread
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from tuco_vllm.corpus.unit import Counts
from tuco_vllm.engine.start_stages import Start, explain

_LOG_SECONDS = 10.0
_REDRAW_SECONDS = 0.2
_START_SECONDS = 1.0


class StartLine:
    """Shows on stderr how far the engines' start is, and at the end what it took.

    Of several engines the first: they do the same.

    Args:
        starts: engine number -> how far its start is, in words.
        states: engine number -> "starting" or what else it is.
    """

    def __init__(self, starts: Callable[[], dict[int, str]], states: Callable[[], dict[int, str]]) -> None:
        self._starts, self._states = starts, states
        console = Console(stderr=True)
        self._live = console.status("starting") if console.is_terminal else None
        self._over = Event()
        self._thread = Thread(target=self._run, name="start-line", daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()
        if failed is None and (text := self._text()):
            print(f"tuco: engine started in {text}", file=sys.stderr, flush=True)

    def _text(self) -> str:
        starts = self._starts()
        return starts[min(starts)] if starts else ""

    def _run(self) -> None:
        shown = time.monotonic()
        while not self._over.wait(_START_SECONDS):
            now, text = time.monotonic(), self._text()
            said = f"engine starting for {text}" if text else ""
            if not text and set(self._states().values()) == {"waiting"}:
                said = "waiting for a machine with room for an engine"
            if self._live is not None:
                self._live.update(Text(said or "starting"))
            elif said and now - shown >= _LOG_SECONDS:
                shown = now
                print(f"tuco: {said}", file=sys.stderr, flush=True)


@contextmanager
def start_shown(choice: str = "") -> Iterator[None]:
    """Around the start of one engine of this process: it is shown as those of a job are. ``choice``: what was
    chosen for it, and why."""
    with Start() as start, StartLine(lambda: {0: start.text()}, dict):
        if choice:
            explain(choice)
        yield


class ProgressLine:
    """Shows rows, rows/s, prompt tokens/s, errors, engines ready and time left, on stderr.

    Args:
        total: rows of the whole job.
        done: what earlier runs of the job have done; rates leave it out.
        engine_states: engine number -> "ready" or what else it is.
    """

    def __init__(self, total: int, done: Counts, engine_states: Callable[[], dict[int, str]]) -> None:
        self._total = total
        self._engine_states = engine_states
        self._first = replace(done)  # the caller goes on counting in its own
        self._start = self._shown = time.monotonic()
        console = Console(stderr=True)
        self._live = (
            Progress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("rows"),
                TextColumn("{task.fields[rates]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
                speed_estimate_period=60.0,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._task = self._live.add_task("", total=self._total, completed=self._first.rows, rates="")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, counts: Counts, *, last: bool = False) -> None:
        """Call now and then; it draws only as often as is of use, and in any case the ``last`` time."""
        now = time.monotonic()
        if not last and now - self._shown < (_REDRAW_SECONDS if self._live is not None else _LOG_SECONDS):
            return
        self._shown = now
        seconds = max(now - self._start, 1e-9)
        rows = counts.rows - self._first.rows
        tokens = counts.prompt_tokens - self._first.prompt_tokens
        rates = f"{rows / seconds:,.1f} rows/s, {tokens / seconds:,.0f} tokens/s, {counts.errors:,} errors"
        rates += f", {_engines(self._engine_states())}"
        if self._live is not None:
            self._live.update(self._task, completed=counts.rows, rates=rates)
            return
        left = timedelta(seconds=round((self._total - counts.rows) * seconds / rows)) if rows else "?"
        print(
            f"tuco: {counts.rows:,}/{self._total:,} rows, {rates}, {left} left", file=sys.stderr, flush=True
        )


def _engines(states: dict[int, str]) -> str:
    """How many are ready, and what the others do or wait for."""
    others = Counter(states.values())
    ready = others.pop("ready", 0)
    why = ", ".join(f"{count} {state}" for state, count in sorted(others.items()))
    return f"{ready}/{len(states)} engines" + (f" ({why})" if why else "")
