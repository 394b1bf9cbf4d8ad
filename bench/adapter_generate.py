"""What scores and alpha cost where a LoRA adapter generates: against plain FT, beside a full pair.

    python bench/adapter_generate.py [--shapes gqa] [--dtypes float32] [--rank 16]

Physics. A decode step reads every weight once for all its requests. A full pair's scored or steered step
reads PT's too: at most 0.5 of plain FT where reading weights is all there is. Under an adapter PT's rows
stand behind FT's tokens in the same products, so weights are read once, and the step has twice the rows: 1.0
where it is bound by weights, 0.5 where by arithmetic, which two cores are from a few rows on.

Method. One engine a kind of pair, uncompiled, since vLLM does not compile LoRA on a CPU. In every round the
same fresh prompts are completed plainly (vLLM's own forward), with scores, and at alpha = 0.5; ratios are
taken within a round, then their median. The full pair is the base and the model that PEFT merges.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from models import SHAPES, VOCAB_SIZE, write_adapter, write_pair
from provenance import append, provenance
from score import spread

from tuco_vllm.config import resolve_pair
from tuco_vllm.steering import ANY_NUMBER, Steering

WISHES = {"plain": Steering(), "scored": Steering(scored=True), "steered": Steering(0.5)}


def main() -> None:
    """Measure every cell; a line and a record each."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--shapes", default="gqa", help="of " + ",".join(SHAPES))
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--requests", default="4,16", help="texts at once")
    parser.add_argument("--tokens", type=int, default=48, help="generated, after as many of a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    origin = provenance()
    for shape in options.shapes.split(","):
        for dtype in options.dtypes.split(","):
            with tempfile.TemporaryDirectory() as directory:
                base, _ = write_pair(SHAPES[shape], Path(directory), dtype)
                adapter, merged = write_adapter(base, Path(directory), options.rank, dtype)
                for kind, ft in (("adapter", adapter), ("full pair", merged)):
                    for cell in measure(base, ft, dtype, options):
                        cell = {"kind": kind, "shape": shape, "dtype": dtype, "rank": options.rank, **cell}
                        print({k: v for k, v in cell.items() if k != "seconds"}, flush=True)
                        append(
                            "adapter_generate", {"bench": "adapter_generate", **cell, "provenance": origin}
                        )


def measure(base: str, ft: str, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of one engine, every number of requests."""
    from tuco_vllm.engine.generator import Generator, SamplingParams

    params = SamplingParams(max_tokens=options.tokens, temperature=0.0, ignore_eos=True, detokenize=False)
    counts = [int(count) for count in options.requests.split(",")]
    args: dict[str, Any] = {"dtype": dtype, "enforce_eager": True, "skip_tokenizer_init": True}
    args |= {"max_model_len": 2 * options.tokens, "max_num_seqs": max(counts)}
    args |= {"enable_prefix_caching": False, "kv_cache_memory_bytes": 1 << 30}
    engine = Generator(resolve_pair(base, ft), limits=ANY_NUMBER, **args)
    cells = []
    for count in counts:
        seconds: dict[str, list[float]] = {wish: [] for wish in WISHES}
        for number in range(options.rounds + 1):
            draw = random.Random(f"{number} {count}")
            prompts = [draw.choices(range(3, VOCAB_SIZE), k=options.tokens) for _ in range(count)]
            for wish, steering in WISHES.items():
                start = time.perf_counter()
                engine.generate(prompts, [params] * count, [steering] * count, progress=False)
                if number:  # the first warms up
                    seconds[wish].append(round(time.perf_counter() - start, 4))
        cell = {"requests": count, "tokens": options.tokens, "rounds": options.rounds, "seconds": seconds}
        plain = seconds["plain"]
        cell["plain_tokens_a_second"] = round(count * options.tokens / sorted(plain)[len(plain) // 2])
        for wish, own in seconds.items():
            cell[f"{wish}_over_plain"] = spread([a / b for a, b in zip(plain, own, strict=True)])
        cells.append(cell)
    engine.close()
    return cells


if __name__ == "__main__":
    main()
