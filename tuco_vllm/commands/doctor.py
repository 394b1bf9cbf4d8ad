"""``tuco doctor``: what would work on this machine."""

import argparse
from pathlib import Path

from tuco_vllm.commands.options import positive
from tuco_vllm.errors import InputError

TEXT = "What would work here: versions, backend and, if named, a pair. Or whether that pair fits a GPU."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    parser.add_argument("--pt", help="pre-trained model")
    parser.add_argument("--ft", help="fine-tuned model, or a LoRA adapter, which names its --pt itself")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="what to try the pair on; default: demo's"
    )
    parser.add_argument(
        "--gpu-memory",
        type=_gibibytes,
        metavar="GIB",
        help="only tell whether the pair fits a GPU of this size, from config.json and headers of weights",
    )
    parser.add_argument(
        "--max-model-len",
        type=positive,
        metavar="TOKENS",
        help="with --gpu-memory: length of a sequence; default: what FT's config.json states",
    )


def _gibibytes(text: str) -> float:
    """A size above 0."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GiB, such as 80")
    return size


def run(arguments: argparse.Namespace) -> int:
    """Print the examination. Returns the exit code."""
    if arguments.ft is None and arguments.pt is not None:
        raise InputError("give both --pt and --ft, or neither")
    if arguments.prompts is not None and arguments.ft is None:
        raise InputError("--prompts are for a pair: give --pt and --ft too")
    if arguments.gpu_memory is not None:
        if arguments.ft is None or arguments.prompts is not None:
            raise InputError("--gpu-memory is for a pair and reads no prompts: give --pt and --ft only")
        from tuco_vllm.doctor.memory import tell_fit

        return tell_fit(arguments.pt, arguments.ft, arguments.gpu_memory, arguments.max_model_len)
    if arguments.max_model_len is not None:
        raise InputError("--max-model-len goes with --gpu-memory: give both, or neither")
    from tuco_vllm.doctor import run_doctor

    return run_doctor(arguments.pt, arguments.ft, arguments.prompts)
