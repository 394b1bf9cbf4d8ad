"""run.json: what a run was asked, with what, how far it is and how fast; for `tuco status` and for later."""

import json
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuco_vllm import __version__
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
    """

    def __init__(self, path: Path, total: int, committed: Counts, details: dict[str, Any]) -> None:
        self._path = path
        self._details = details
        self._total = total
        self._first = replace(committed)  # the caller goes on counting in its own
        self._earlier_seconds = _earlier_seconds(path) if committed.rows else 0.0
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._saved = 0.0

    def save(self, state: str, counts: Counts, committed: int, error: str | None = None) -> None:
        """Write run.json. ``state``: running, finished, interrupted or failed.

        ``counts`` are of the whole job, ``committed`` the rows that this run has put into parts.
        """
        seconds = time.monotonic() - self._clock
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
                "prompt_tokens": counts.prompt_tokens,
            },
            "timings": {
                "started": self._started.isoformat(timespec="seconds"),
                "updated": datetime.now(UTC).isoformat(timespec="seconds"),
                "score_seconds": round(self._earlier_seconds + seconds, 3),
                "rows_per_second": round((counts.rows - self._first.rows) / seconds, 3) if seconds else 0.0,
                "prompt_tokens_per_second": round(here / seconds, 3) if seconds else 0.0,
            },
        }
        write_whole(self._path, json.dumps(record, indent=1))
        self._saved = time.monotonic()

    def save_now_and_then(self, counts: Counts, committed: int) -> None:
        """Write run.json if the last time is some seconds ago: for whoever watches a running job."""
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save("running", counts, committed)


def _earlier_seconds(path: Path) -> float:
    try:
        return float(json.loads(path.read_text())["timings"]["score_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # a count for people: its loss is no reason to stop
