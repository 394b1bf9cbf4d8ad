"""``tuco serve``: vLLM's OpenAI server with alpha and TuCo in it."""

import argparse

from tuco_vllm.steering import MAX_ALPHA, MIN_ALPHA, Limits

TEXT = "Serve vLLM's OpenAI API with alpha and TuCo in it."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads; ``arguments.vllm_flags`` are all flags that are not among them."""
    add = parser.add_argument
    add("--pt", metavar="P", help="pre-trained model: directory or hub id org/name[@revision]")
    adapter = "the model fine-tuned from it, or a LoRA adapter of it (more: --lora-modules NAME=PATH)"
    add("--ft", required=True, metavar="F", help=adapter)
    least, most = (
        f"the {which} alpha a request may have; default: %(default)s" for which in ("least", "largest")
    )
    add("--min-alpha", type=float, default=MIN_ALPHA, metavar="A", help=least)
    add("--max-alpha", type=float, default=MAX_ALPHA, metavar="A", help=most)
    flagged = (
        "thresholds of tuco calibrate: every request that one holds for is scored, asked or not, which costs "
        "PT's share of it; /metrics counts tuco:checked_total and tuco:flagged_total, and answers that bring "
        "scores say flagged"
    )
    add("--flag", metavar="FILE", help=flagged)
    parser.epilog = "All other flags are `vllm serve`'s: --port, --api-key, --max-model-len, --dtype, ..."


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it. Returns the exit code."""
    from tuco_vllm.server.app import serve

    limits = Limits(arguments.min_alpha, arguments.max_alpha).checked()
    serve(arguments.pt, arguments.ft, arguments.vllm_flags, limits=limits, flag=arguments.flag)
    return 0
