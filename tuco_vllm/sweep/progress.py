"""What a person sees of a sweep: answers, rate and time left on stderr, live on a terminal."""

import sys
import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG_SECONDS = 10.0


class AnswerLine:
    """Shows answers, which are questions times alphas, of ``total``; ``done`` were there before."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._start = self._shown = time.monotonic()
        console = Console(stderr=True)
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._live = (
            Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._task = self._live.add_task("answers", total=self._total, completed=self._first)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, done: int, errors: int) -> None:
        """Call after each chunk. A log gets a line every ten seconds, and one at the end."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
        words = f"answers, {rate:,.1f}/s, {errors:,} errors"
        if self._live is not None:
            self._live.update(self._task, completed=done, description=words)
        elif done >= self._total or now - self._shown >= _LOG_SECONDS:
            self._shown = now
            left = timedelta(seconds=round((self._total - done) / rate)) if rate else "?"
            print(f"tuco: {done:,}/{self._total:,} {words}, {left} left", file=sys.stderr, flush=True)
