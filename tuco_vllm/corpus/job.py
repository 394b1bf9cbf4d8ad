"""The output directory as the state of a job: whose it is, who writes it, how far it has come.

part-00000.parquet ...   rows in input order, so the number of committed rows says where to go on
_SUCCESS                 the job is complete
_tuco/job.json           the job's identity          _tuco/run.json   settings, counts, timings
_tuco/lock               held (flock) by the process that writes; the kernel lets go when it dies
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuco_vllm.corpus.identity import Identity, difference, without_responses
from tuco_vllm.corpus.publish import hidden, remove, write_whole
from tuco_vllm.errors import InputError
from tuco_vllm.records import PART, STATE, SUCCESS

_GLANCE_SECONDS = 1.0
"""So long is a lock waited for: a ``tuco status`` that looks at it holds it for a moment."""


@dataclass
class Counts:
    """How far a job has come."""

    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    set_aside: list[int] = field(default_factory=list)
    """The numbers of the rows that engines died on, in order; they are among the errors."""


class JobDirectory:
    """One job's output directory. Nothing is written before ``locked`` and ``begin``."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.run_file = out / STATE / "run.json"
        self._job_file = out / STATE / "job.json"
        self._lock_file = out / STATE / "lock"

    def is_finished(self, identity: Identity) -> bool:
        """Whether this very job is complete here. Raises InputError where the directory is another's."""
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file: name a directory")
        try:
            old = json.loads(self._job_file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            self._check_no_foreign_parts()
            return False
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self._job_file}: {error}") from error
        finished = (self.out / SUCCESS).exists()
        if old.get("schema_version") == "1" and identity["schema_version"] != "1":
            if not finished:
                raise InputError(
                    f"{self.out} holds a half-done run of an earlier version, whose files have fewer "
                    "columns: start anew with --overwrite"
                )
            old = without_responses(old, identity["schema_version"])  # still a table of the same scores
        differs = difference(old, identity)
        if differs is not None:
            raise InputError(
                f"{self.out} holds another job ({differs}): choose another --out, "
                "or start anew with --overwrite"
            )
        return finished

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only run that writes here. Raises InputError where another is, or nobody can write."""
        try:
            self._lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock_file.open("a+")
        except OSError as error:
            raise InputError(f"cannot write to --out {self.out}: {error.strerror}") from error
        with lock:
            until = time.monotonic() + _GLANCE_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > until:
                        holder = _holder(self._lock_file)
                        raise InputError(f"{self.out} is being written by {holder}") from None
                    time.sleep(_GLANCE_SECONDS / 10)
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            lock.flush()
            yield

    def running(self) -> str | None:
        """The process that writes here now, in words, if any."""
        with suppress(OSError), self._lock_file.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return _holder(self._lock_file)
        return None

    def begin(self, identity: Identity, *, overwrite: bool) -> None:
        """Make the directory this job's. With ``overwrite`` the files of an earlier run are removed."""
        if overwrite:
            self._check_no_foreign_parts(unless=self._job_file.exists())
            # From the end, the mark of success first: whatever is left after a kill is a valid beginning.
            remove(self.out / SUCCESS)
            for path in reversed(self.parts()):
                remove(path)
            remove(self.run_file)
        for path in self.out.glob(hidden(Path(PART.format(0))).name.replace("00000", "*")):
            remove(path)
        if overwrite or not self._job_file.exists():
            write_whole(self._job_file, json.dumps(identity, indent=1))

    def finish(self) -> None:
        """Mark the job complete."""
        write_whole(self.out / SUCCESS, "")

    def parts(self) -> list[Path]:
        """The committed parts in order. Raises InputError where one is missing between others."""
        pattern = re.compile(re.escape(PART.format(0)).replace("00000", r"\d{5,}"))
        parts = sorted(path for path in self.out.glob("part-*") if pattern.fullmatch(path.name))
        parts.sort(key=lambda path: int(path.stem.removeprefix("part-")))
        for number, path in enumerate(parts):
            if path.name != PART.format(number):
                raise InputError(f"{self.out / PART.format(number)} is missing: start anew with --overwrite")
        return parts

    def committed(self) -> Counts:
        """What the committed parts hold."""
        counts = Counts()
        for path in self.parts():
            try:
                table = pq.ParquetFile(path).read(columns=["prompt_tokens", "error"])
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"cannot read {path}: {error}; start anew with --overwrite") from error
            counts.rows += table.num_rows
            counts.errors += table.num_rows - table["error"].null_count
            counts.prompt_tokens += pc.sum(table["prompt_tokens"]).as_py() or 0
        counts.set_aside = [row for row in self._set_aside() if row < counts.rows]
        return counts

    def _set_aside(self) -> list[int]:
        try:
            return [int(row) for row in json.loads(self.run_file.read_text())["set_aside_rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []  # numbers for people: their loss is no reason to stop

    def _check_no_foreign_parts(self, *, unless: bool = False) -> None:
        if not unless and ((self.out / SUCCESS).exists() or any(self.out.glob("part-*"))):
            raise InputError(f"{self.out} holds results that no tuco run wrote: choose another --out")


def _holder(lock_file: Path) -> str:
    with suppress(OSError):
        return lock_file.read_text().strip() or "another process"
    return "another process"
