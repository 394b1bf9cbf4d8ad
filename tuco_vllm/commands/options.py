"""What the options of several commands have in common."""

import argparse
from typing import Any


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


STEPS = ("max_num_batched_tokens", "max_num_seqs", "async_scheduling", "cudagraph_mode")
"""What ``add_step_options`` adds."""

_GRAPH_MODES = ("NONE", "PIECEWISE", "FULL_AND_PIECEWISE")


def add_step_options(parser: argparse.ArgumentParser, tokens: str, prompts: str, graphs: str) -> None:
    """How an engine's steps run; ``tokens``, ``prompts`` and ``graphs`` say what the defaults are."""
    add = parser.add_argument
    add("--max-num-batched-tokens", type=positive, metavar="TOKENS", help=f"tokens a step; default: {tokens}")
    add("--max-num-seqs", type=positive, metavar="PROMPTS", help=f"prompts a step; default: {prompts}")
    add("--cudagraph-mode", choices=_GRAPH_MODES, help=f"default: {graphs}")
    ahead = "plan a step while the one before runs; default: vLLM's choice"
    add("--async-scheduling", action=argparse.BooleanOptionalAction, help=ahead)


def engine_arguments(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of an engine's that were given; vLLM's own defaults stand for the rest."""
    given = {name: getattr(arguments, name) for name in names}
    # False is a flag that was not given, but of the one that can be asked to be off.
    given = {name: value for name, value in given.items() if value is not None}
    given = {name: value for name, value in given.items() if value is not False or name == "async_scheduling"}
    if mode := given.pop("cudagraph_mode", None):
        given["compilation_config"] = {"cudagraph_mode": mode}
    return given
