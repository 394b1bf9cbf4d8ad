"""``tuco doctor``: what would work on this machine."""

import argparse
from pathlib import Path

from tuco_vllm.errors import InputError

TEXT = "What would work here: versions, backend and, if named, a pair."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    parser.add_argument("--pt", help="pre-trained model")
    parser.add_argument("--ft", help="fine-tuned model, or a LoRA adapter, which names its --pt itself")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="what to try the pair on; default: demo's"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the examination. Returns the exit code."""
    if arguments.ft is None and arguments.pt is not None:
        raise InputError("give both --pt and --ft, or neither")
    if arguments.prompts is not None and arguments.ft is None:
        raise InputError("--prompts are for a pair: give --pt and --ft too")
    from tuco_vllm.doctor import run_doctor

    return run_doctor(arguments.pt, arguments.ft, arguments.prompts)
