"""run.json: what a run was asked, with what, how far it is and how fast; for `tuco status` and for later."""

import json
import platform
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import ray

from tuco_vllm import __version__
from tuco_vllm.corpus.duplicates import Duplicates
from tuco_vllm.corpus.unit import Counts
from tuco_vllm.corpus.worker import Report
from tuco_vllm.records import RUN_FILE
from tuco_vllm.store import Store


class RunRecord:
    """Keeps run.json current. Seconds of scoring add up over the runs of a resumed job.

    Args:
        store: where the job's output lies.
        total: rows of the whole job.
        done: what earlier runs of the job have done.
        details: further JSON values: settings, models, versions, the command.
        engines: what each engine has done in this run.

    ``duplicates`` may be set before the last ``save``.
    """

    def __init__(
        self, store: Store, total: int, done: Counts, details: dict[str, Any], engines: "EngineTally"
    ) -> None:
        self.duplicates: Duplicates | None = None
        self._store, self._total, self._details, self._engines = store, total, details, engines
        self._first = replace(done)  # the caller goes on counting in its own
        self._earlier = _earlier(store) if done.rows else {}
        self._earlier_seconds = _seconds(self._earlier)
        self._started = datetime.now(UTC)
        self._begun = time.monotonic()
        self._seconds: float | None = None

    def scored(self) -> None:
        """Scoring is over: what follows is not counted in its seconds."""
        self._seconds = time.monotonic() - self._begun

    def save(self, state: str, done: Counts, seen: Counts | None = None, error: str | None = None) -> None:
        """Write run.json. ``state``: running, finished, interrupted or failed.

        ``done`` is what lies in parts; ``seen`` has the rows of units at hand as well.
        """
        seen = seen or done
        seconds = time.monotonic() - self._begun if self._seconds is None else self._seconds
        rows, tokens = seen.rows - self._first.rows, seen.prompt_tokens - self._first.prompt_tokens
        record = {
            "state": state,
            "error": error,
            **self._details,
            "versions": {
                "tuco_vllm": __version__,
                "python": platform.python_version(),
                "ray": ray.__version__,
                **self._details.get("versions", {}),
            },
            "counts": {
                "rows_total": self._total,
                "rows": seen.rows,
                "rows_committed": done.rows,
                "errors": seen.errors,
                "quarantined": len(done.set_aside),
                "prompt_tokens": seen.prompt_tokens,
            },
            "set_aside_rows": sorted(done.set_aside),
            "timings": {
                "started": self._started.isoformat(timespec="seconds"),
                "updated": datetime.now(UTC).isoformat(timespec="seconds"),
                "score_seconds": round(self._earlier_seconds + seconds, 3),
                "rows_per_second": round(rows / seconds, 3) if seconds else 0.0,
                "prompt_tokens_per_second": round(tokens / seconds, 3) if seconds else 0.0,
            },
            "engines": self._engines.as_json(),
            "duplicate_ids": asdict(self.duplicates) if self.duplicates else None,
        }
        if not self._engines.as_json():  # nothing was left to score: what the last engines were stays
            kept = ("engine", "engines", "versions")
            record |= {name: self._earlier[name] for name in kept if name in self._earlier}
        self._store.replace(RUN_FILE, json.dumps(record, indent=1).encode())


class EngineTally:
    """What each engine of a run has done: for a person who wonders which one is slow."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._tokens: dict[int, int] = {}
        self._processes: dict[int, dict[str, Report]] = {}  # the last report of each process
        self.states: dict[int, str] = {}
        """How the engines are now, by their numbers."""

    def add(self, report: Report) -> None:
        """Count a unit."""
        number = report.engine
        self._rows[number] = self._rows.get(number, 0) + report.done.rows
        self._tokens[number] = self._tokens.get(number, 0) + report.done.prompt_tokens
        self._processes.setdefault(number, {})[report.process] = report

    def as_json(self) -> list[dict[str, Any]]:
        """One entry for each engine, in the order of their numbers."""
        return [self._entry(number) for number in sorted({*self._rows, *self.states})]

    def _entry(self, number: int) -> dict[str, Any]:
        reports = self._processes.get(number, {})
        busy = sum(report.busy_seconds for report in reports.values())
        ready = sum(report.ready_seconds for report in reports.values())
        return {
            "name": f"engine {number}",
            "node": next(reversed(reports), "").partition(":")[0],
            "state": self.states.get(number, "gone"),
            "starts": sum(report.starts for report in reports.values()),
            "rows": self._rows.get(number, 0),
            "prompt_tokens": self._tokens.get(number, 0),
            "busy_seconds": round(busy, 3),
            "utilisation": round(min(1.0, busy / ready), 3) if ready else 0.0,
        }


def _earlier(store: Store) -> dict[str, Any]:
    """What the last run said; it is for people, so its loss is no reason to stop."""
    try:
        return dict(json.loads(store.read(RUN_FILE) or b""))
    except (ValueError, TypeError):
        return {}


def _seconds(run: dict[str, Any]) -> float:
    try:
        return float(run["timings"]["score_seconds"])
    except (ValueError, KeyError, TypeError):
        return 0.0
