"""The whole parity product, hours on two cores: ``make test-full``. It can be stopped, and goes on.

One shard for each pair of models, then one for all other tests; two run at a time. Each leaves a record in
bench/results/test_full.jsonl, and one that has passed with the code as it is now is not run again. Of a
pair's only the code counts that a cell may run.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tiny_models

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "bench" / "results" / "test_full.jsonl"
OTHERS = "others"
"""The shard of what is no cell of the product."""

NO_CELLS = (
    *("bench", "*.md", "tuco_vllm/analysis", "tuco_vllm/builders", "tuco_vllm/cli.py", "tuco_vllm/corpus"),
    *("tuco_vllm/demo", "tuco_vllm/doctor", "tuco_vllm/server", "tuco_vllm/store", "tuco_vllm/sweep"),
    *("tests/analysis", "tests/builders", "tests/corpus", "tests/doctor", "tests/kernels", "tests/server"),
    *("tests/sweep", "tests/unit"),
)
"""Where there is nothing that a cell of the product runs."""


def main() -> int:
    """Run the shards that are left, or those named. Returns the exit code."""
    shards = sys.argv[1:] or [*tiny_models.PAIRS, OTHERS]
    left = [shard for shard in shards if shard not in passed()]
    print(f"{len(shards) - len(left)} of {len(shards)} shards have passed", flush=True)
    with ThreadPoolExecutor(2) as pool:
        codes = dict(zip(left, pool.map(run, left), strict=True))
    failed = [shard for shard, code in codes.items() if code]
    print(f"failed: {', '.join(failed)}" if failed else "all have passed")
    return bool(failed)


def run(shard: str) -> int:
    """One shard; what it prints goes into a file of its own, to be looked at when it fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "--full", "--shard", shard]
    log = ROOT / "build" / f"test-full-{shard}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as out:
        code = subprocess.run(
            [*command, "--timeout=2400"], cwd=ROOT, stdout=out, stderr=out, check=False
        ).returncode
    print(f"{shard}: {'passed' if code == 0 else f'FAILED, see {log}'}", flush=True)
    return code


def passed() -> set[str]:
    """Shards with a good record whose commit differs from what is here in records only."""
    done = set()
    for line in RECORDS.read_text().splitlines() if RECORDS.exists() else ():
        record = json.loads(line)
        origin = record["provenance"]
        if record["exit"] == 0 and "shard" in record and not origin["dirty"]:
            apart = ("bench/results",) if record["shard"] == OTHERS else NO_CELLS
            if is_here(origin["commit"], apart):
                done.add(record["shard"])
    return done


def is_here(commit: str, apart: Sequence[str]) -> bool:
    """Whether the code is that commit's, these paths apart."""
    command = ["git", "diff", "--quiet", commit, "--", ".", *(f":!{path}" for path in apart)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
