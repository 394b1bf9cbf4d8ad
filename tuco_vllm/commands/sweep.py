"""``tuco sweep``: what α does to a model's answers."""

import argparse
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tuco_vllm import interruption
from tuco_vllm.commands.options import STEPS, add_step_options, engine_arguments, positive

if TYPE_CHECKING:
    from tuco_vllm.sweep.run import NextTokens, SweepJob

TEXT = "Answers to labelled questions under a grid of α: accuracy by α, Parquet, and what it proves."

_FORMATS = """
kinds of data (--dataset, --utility-dataset):
  jsonl      an object a line: "prompt" (a string) or "messages" (a chat, through FT's template), "options"
             (two strings or more that may follow; their first tokens differ), "answer" (number from 0, or
             the text), "task" (default: the file's name), "group" and "id" (optional)
  mmlu-csv   subject, question, A, B, C, D, answer, with a header; or the original files without one, named
             SUBJECT_test.csv. Asked behind the examples of --few-shot, in the template of Hendrycks et al.
  mwe-jsonl  model-written evaluations: "question", "answer_matching_behavior" and
             "answer_not_matching_behavior"; accuracy is the share of answers that match the behaviour;
             asked as "Human: ...\\n\\nAssistant:"

The answer is the option whose first token is the most probable next one. Δ is against α = 1, on folds that
did not choose α; effects.csv has all figures.
"""
_ENGINE = (
    "dtype",
    "max_model_len",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "enforce_eager",
    "trust_remote_code",
    *STEPS,
)
"""Options that an engine takes as they are."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _FORMATS
    add = parser.add_argument
    kinds = ("mmlu-csv", "mwe-jsonl", "jsonl")
    add("inputs", nargs="+", metavar="INPUT", help="files, globs or folders of one kind of data")
    add("--dataset", required=True, choices=kinds, help="what the inputs are, see below")
    add("--pt", metavar="P", help="pre-trained model: directory or hub id org/name[@revision]")
    add("--ft", required=True, metavar="F", help="the model fine-tuned from it, or a LoRA adapter")
    add("--out", required=True, metavar="DIR", help="where the answers go; the same command resumes")
    paper = "0.75,0.9,0.95,1,1.05,1.1,1.25"
    add("--alphas", default=paper, metavar="A,B,...", help="default: the paper's, %(default)s; 1 is added")
    ranges = "scale these layers only, both included and from 0; several times: the grid for each range"
    add("--layers", action="append", default=[], metavar="A-B", help=ranges)
    add("--few-shot", action="append", default=[], metavar="FILE", help="MMLU's examples (dev.csv)")
    add("--shots", type=_count, default=5, metavar="N", help="examples a question, default: %(default)s")
    cost = "a second data set, answered in the same stream: what else α changes"
    add("--utility", nargs="+", default=[], metavar="INPUT", help=cost)
    add("--utility-dataset", choices=kinds)
    add("--limit", type=positive, metavar="ROWS", help="so many rows of each task, drawn with a fixed seed")
    add("--chat", action="store_true", help="ask each question as the user's turn of a chat")
    add("--chat-template", default="auto", metavar="auto|none|FILE", help="FILE implies --chat")
    add("--system-prompt", metavar="TEXT", help="before that turn; implies --chat")
    add("--max-model-len", type=positive, metavar="TOKENS")
    add("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto")
    add("--tensor-parallel-size", type=positive, metavar="N", help="GPUs (or CPU ranks)")
    add("--overwrite", action="store_true", help="start anew: remove an earlier sweep's files in --out")
    add("--strict", action="store_true", help="exit with 1 if any row has an error")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with a model")
    add("--gpu-memory-utilization", type=float, metavar="SHARE")
    add("--enforce-eager", action="store_true", help="no torch.compile, no CUDA graphs")
    add_step_options(parser, "vLLM's", "vLLM's", "vLLM's")


def run(arguments: argparse.Namespace) -> int:
    """Sweep, resuming what there is, and print the tables. Returns the exit code."""
    from tuco_vllm.analysis.effects_table import find_effects, print_effects, save_effects
    from tuco_vllm.config import resolve_pair
    from tuco_vllm.corpus.progress import start_shown
    from tuco_vllm.store import store_at
    from tuco_vllm.sweep.run import run_sweep

    job = sweep_job(arguments)
    pair = resolve_pair(arguments.pt, arguments.ft, trust_remote_code=arguments.trust_remote_code)
    if pair.note:
        print(f"tuco: {pair.note}", file=sys.stderr)

    def open_engine(tokens: int) -> AbstractContextManager["NextTokens"]:
        from tuco_vllm import TucoLLM
        from tuco_vllm.engine.arguments import eager_or_compiled

        engine_args, choice = eager_or_compiled(pair, engine_arguments(arguments, *_ENGINE), tokens)
        with start_shown(choice):
            return TucoLLM(
                arguments.pt, arguments.ft, task="generate", use_tqdm_on_load=arguments.debug, **engine_args
            )

    interruption.advise(f"the same command (without --overwrite) goes on from what {job.out} holds")
    run_sweep(job, pair, open_engine)
    store = store_at(job.out)
    found = find_effects(store)
    save_effects(store, found)  # before a reader of stdout may leave
    print_effects(found)
    return 1 if arguments.strict and found.errors else 0


def sweep_job(arguments: argparse.Namespace) -> "SweepJob":
    """The sweep that the options name. Raises InputError."""
    from tuco_vllm.sweep.datasets import Asking
    from tuco_vllm.sweep.grid import parse_alphas, parse_layers
    from tuco_vllm.sweep.run import SweepJob

    return SweepJob(
        inputs=tuple(arguments.inputs),
        dataset=arguments.dataset,
        out=arguments.out,
        alphas=parse_alphas(arguments.alphas),
        layers=tuple(parse_layers(each) for each in arguments.layers),
        utility=tuple(arguments.utility),
        utility_dataset=arguments.utility_dataset,
        asking=Asking(tuple(arguments.few_shot), arguments.shots, arguments.chat, arguments.limit),
        chat_template=arguments.chat_template,
        system_prompt=arguments.system_prompt,
        max_model_len=arguments.max_model_len,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        trust_remote_code=arguments.trust_remote_code,
        command=("tuco", *arguments.argv),
    )


def _count(text: str) -> int:
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)
