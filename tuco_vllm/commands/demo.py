"""``tuco demo``: the bundled prompts through the bundled pair."""

import argparse
from pathlib import Path

TEXT = "Score bundled prompts with the bundled pair: table, Parquet and plot."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    parser.add_argument("--out", type=Path, default=Path("tuco-demo"), help="default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. Returns the exit code."""
    from tuco_vllm.demo.run import run_demo

    return run_demo(arguments.out)
