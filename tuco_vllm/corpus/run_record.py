"""run.json: what a run was asked, with what, how far it is and how fast; for `tuco status` and for later."""

import json
import platform
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tuco_vllm import __version__
from tuco_vllm.corpus.chunks import ScoredChunk
from tuco_vllm.corpus.duplicates import Duplicates
from tuco_vllm.corpus.job import Counts
from tuco_vllm.corpus.publish import write_whole

_SAVE_SECONDS = 10.0


class RunRecord:
    """Keeps run.json current. Seconds of scoring add up over the runs of a resumed job.

    Args:
        path: where run.json lies.
        total: rows of the whole job.
        committed: what earlier runs of the job have committed.
        details: further JSON values: settings, models, versions, the command.
        engines: what each engine has done in this run.

    ``begun`` is when scoring began, by time.monotonic(); ``duplicates`` may be set before the last ``save``.
    """

    def __init__(
        self, path: Path, total: int, committed: Counts, details: dict[str, Any], engines: "EngineTally"
    ) -> None:
        self.duplicates: Duplicates | None = None
        self._engines = engines
        self._path = path
        self._details = details
        self._total = total
        self._first = replace(committed)  # the caller goes on counting in its own
        self._earlier_seconds = _earlier_seconds(path) if committed.rows else 0.0
        self._started = datetime.now(UTC)
        self.begun = time.monotonic()
        self._saved = 0.0

    def save(self, state: str, counts: Counts, committed: int, error: str | None = None) -> None:
        """Write run.json. ``state``: running, finished, interrupted or failed.

        ``counts`` are of the whole job, ``committed`` the rows that this run has put into parts.
        """
        seconds = time.monotonic() - self.begun
        here = counts.prompt_tokens - self._first.prompt_tokens
        record = {
            "state": state,
            "error": error,
            **self._details,
            "versions": {
                "tuco_vllm": __version__,
                "python": platform.python_version(),
                **self._details.get("versions", {}),
            },
            "counts": {
                "rows_total": self._total,
                "rows": counts.rows,
                "rows_committed": self._first.rows + committed,
                "errors": counts.errors,
                "quarantined": len(counts.set_aside),
                "prompt_tokens": counts.prompt_tokens,
            },
            "set_aside_rows": counts.set_aside,
            "timings": {
                "started": self._started.isoformat(timespec="seconds"),
                "updated": datetime.now(UTC).isoformat(timespec="seconds"),
                "score_seconds": round(self._earlier_seconds + seconds, 3),
                "rows_per_second": round((counts.rows - self._first.rows) / seconds, 3) if seconds else 0.0,
                "prompt_tokens_per_second": round(here / seconds, 3) if seconds else 0.0,
            },
            "engines": self._engines.as_json(),
            "duplicate_ids": asdict(self.duplicates) if self.duplicates else None,
        }
        write_whole(self._path, json.dumps(record, indent=1))
        self._saved = time.monotonic()

    def save_now_and_then(self, counts: Counts, committed: int) -> None:
        """Write run.json if the last time is some seconds ago: for whoever watches a running job."""
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save("running", counts, committed)


class EngineTally:
    """What each engine of a run has done: for a person who wonders which one is slow."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._tokens: dict[int, int] = {}
        self._processes: dict[int, dict[str, ScoredChunk]] = {}  # the last chunk of each process
        self._states: dict[int, str] = {}

    def add(self, chunk: ScoredChunk, states: dict[int, str]) -> None:
        """Count a chunk; ``states`` is how the engines are now."""
        number = chunk.engine
        self._rows[number] = self._rows.get(number, 0) + chunk.table.num_rows
        tokens = pc.sum(chunk.table["prompt_tokens"]).as_py() or 0
        self._tokens[number] = self._tokens.get(number, 0) + tokens
        self._processes.setdefault(number, {})[chunk.process] = chunk
        self._states = states

    def as_json(self) -> list[dict[str, Any]]:
        """One entry for each engine, in the order of their numbers."""
        return [self._entry(number) for number in sorted({*self._rows, *self._states})]

    def _entry(self, number: int) -> dict[str, Any]:
        chunks = self._processes.get(number, {})
        busy = sum(chunk.busy_seconds for chunk in chunks.values())
        ready = sum(chunk.ready_seconds for chunk in chunks.values())
        return {
            "name": f"engine {number}",
            "node": next(reversed(chunks), "").partition(":")[0],
            "state": self._states.get(number, "gone"),
            "starts": sum(chunk.starts for chunk in chunks.values()),
            "rows": self._rows.get(number, 0),
            "prompt_tokens": self._tokens.get(number, 0),
            "busy_seconds": round(busy, 3),
            "utilisation": round(min(1.0, busy / ready), 3) if ready else 0.0,
        }


def _earlier_seconds(path: Path) -> float:
    try:
        return float(json.loads(path.read_text())["timings"]["score_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # a count for people: its loss is no reason to stop
