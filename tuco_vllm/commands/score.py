"""``tuco score``: prompts and responses in, Parquet out."""

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from tuco_vllm import interruption
from tuco_vllm.commands.options import STEPS, add_step_options, engine_arguments, positive

if TYPE_CHECKING:
    from tuco_vllm.corpus.driver import Workers
    from tuco_vllm.corpus.job import ScoreJob

TEXT = "Score prompts and responses; Parquet out. Resumes by itself."
_ENGINE = (
    "dtype",
    "row_dtype",
    "max_model_len",
    "gpu_memory_utilization",
    "enforce_eager",
    "trust_remote_code",
    *STEPS,
)
"""Options that an engine takes as they are."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    add = parser.add_argument
    inputs = "files, globs, directories, URLs or pipes; also .gz, .zst and .bz2"
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    add("--pt", metavar="P", help="pre-trained model: directory or hub id org/name[@revision]")
    ft = "the model fine-tuned from it, or a LoRA adapter; several adapters: each row under each, column ft"
    add("--ft", required=True, action="append", metavar="F", help=ft)
    place = "where the Parquet parts go: a directory, or s3://, gs:// or az:// and a path"
    add("--out", required=True, metavar="DIR|URL", help=place)
    formats = ("auto", "jsonl", "csv", "parquet", "txt")
    add("--format", choices=formats, default="auto", help="default: by extension")
    add("--prompt-column", default="prompt", metavar="NAME", help="default: %(default)s")
    add("--messages-column", default="messages", metavar="NAME|none", help="chats; they win over the prompt")
    response = "what follows the prompt; in chats it may be the assistant turn at the end"
    add("--response-column", default="response", metavar="NAME|none", help=response)
    what = "responses too, where rows have some; prompts alone; responses, without which a row is an error"
    add("--score", choices=("auto", "prompt", "response"), default="auto", help=what)
    add("--trace", action="store_true", help="also the score at every token of the prompts")
    add("--output-co", action="store_true", help="also OutputCo (paper §5.5); a second pass")
    reward = "also log p of responses under each model, and the difference; a second pass"
    add("--relative-reward", action="store_true", help=reward)
    add("--id-column", metavar="NAME", help="default: ids are PATH:RECORD_NUMBER")
    add("--chat-template", default="auto", metavar="auto|none|FILE", help="FILE also wraps plain prompts")
    add("--system-prompt", metavar="TEXT", help="wraps plain prompts in the chat template, after this")
    add("--on-long", choices=("error", "truncate-left", "truncate-right"), default="error")
    add("--max-model-len", type=positive, metavar="TOKENS")
    add("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto")
    rows = "what 16-bit models' scores are computed in; default: float32 where a family allows it"
    add("--row-dtype", choices=("auto", "float32", "model"), default="auto", help=rows)
    add("--no-layers", action="store_true", help="leave out the per-layer norms")
    add("--no-prompt", action="store_true", help="leave out the prompts' and responses' texts")
    add("--limit", type=positive, metavar="ROWS", help="score only the first rows")
    add("--engines", type=positive, default=1, metavar="N", help="engines side by side, on Ray")
    add("--tensor-parallel-size", type=positive, metavar="N", help="GPUs (or CPU ranks) of each engine")
    stages = "stages of each engine, so many times the GPUs, each with a part of the layers"
    add("--pipeline-parallel-size", type=positive, metavar="N", help=stages)
    add("--ray-address", metavar="ADDRESS", help="a Ray cluster; default: this machine, nothing to start")
    add("--rows-per-file", type=positive, default=10_000, metavar="ROWS", help="default: %(default)s")
    add("--overwrite", action="store_true", help="start anew: remove an earlier run's files in --out")
    add("--extend", action="store_true", help="add files that are new to the job in --out to it")
    add("--strict", action="store_true", help="exit with 1 if any row has an error")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with a model")
    add("--gpu-memory-utilization", type=float, metavar="SHARE")
    add("--enforce-eager", action="store_true", help="no torch.compile, no CUDA graphs")
    add_step_options(parser, "32768 on a GPU, else vLLM's", "1024 on a GPU, else vLLM's", "NONE")


def run(arguments: argparse.Namespace) -> int:
    """Score, resuming what there is, and print the closing table. Returns the exit code."""
    from tuco_vllm.analysis.tables import print_summary
    from tuco_vllm.config import expect_row_dtype, other_adapters, resolve_pair
    from tuco_vllm.corpus.run import score_corpus
    from tuco_vllm.score_requests import expect_streams
    from tuco_vllm.store import store_at

    first, *others = arguments.ft
    pair = resolve_pair(arguments.pt, first, trust_remote_code=arguments.trust_remote_code)
    expect_row_dtype(pair, arguments.row_dtype)
    job = replace(score_job(arguments), other_fts=other_adapters(others, pair))
    for ft in (pair.ft, *job.other_fts):
        expect_streams(ft.adapter, job.more)
    if pair.note:
        print(f"tuco: {pair.note}", file=sys.stderr)

    def open_workers(tokens: int) -> "Workers":
        from tuco_vllm.corpus.actor import encoder_maker, engine_starter
        from tuco_vllm.corpus.cluster import Cluster
        from tuco_vllm.corpus.driver import Workers

        engines = "the engine" if arguments.engines == 1 else f"{arguments.engines} engines"
        print(f"tuco: starting {engines}", file=sys.stderr, flush=True)
        cluster = Cluster(
            arguments.engines,
            arguments.tensor_parallel_size or 1,
            arguments.ray_address,
            arguments.debug,
            arguments.pipeline_parallel_size or 1,
        )
        share = {"expected_tokens": tokens // arguments.engines}
        start_engine = engine_starter(
            pair, cluster, engine_arguments(arguments, *_ENGINE) | share, job.other_fts
        )
        return Workers(cluster, start_engine, encoder_maker(job, pair))

    interruption.advise(f"the same command (without --overwrite) goes on from what {job.out} holds")
    score_corpus(job, pair, open_workers, engines=arguments.engines)
    summary = print_summary(store_at(job.out))
    return 1 if arguments.strict and summary.errors else 0


def score_job(arguments: argparse.Namespace) -> "ScoreJob":
    """The job that the options name."""
    from tuco_vllm.corpus.columns import Columns
    from tuco_vllm.corpus.job import ScoreJob
    from tuco_vllm.score_requests import MoreScores

    messages, response = (
        None if name == "none" else name for name in (arguments.messages_column, arguments.response_column)
    )
    return ScoreJob(
        inputs=tuple(arguments.inputs),
        out=arguments.out,
        file_format=arguments.format,
        columns=Columns(
            arguments.prompt_column, messages, arguments.id_column, response, score=arguments.score
        ),
        chat_template=arguments.chat_template,
        system_prompt=arguments.system_prompt,
        on_long=arguments.on_long,
        max_model_len=arguments.max_model_len,
        dtype=arguments.dtype,
        row_dtype=arguments.row_dtype,
        limit=arguments.limit,
        layers=not arguments.no_layers,
        prompt=not arguments.no_prompt,
        more=MoreScores(arguments.trace, arguments.output_co, arguments.relative_reward),
        rows_per_file=arguments.rows_per_file,
        overwrite=arguments.overwrite,
        extend=arguments.extend,
        trust_remote_code=arguments.trust_remote_code,
        command=("tuco", *arguments.argv),
    )
