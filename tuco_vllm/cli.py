"""The `tuco` command: parsing, exit codes and nothing else; heavy imports wait until a command needs them.

Exit codes: 0 done, 1 done with row errors (only with --strict), 2 usage or bad input, 3 engine failure,
128 + its number where a signal ended it (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP; see ``interruption.py``). An
error is one line on stderr; --debug shows where it came from.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuco_vllm import __version__, interruption
from tuco_vllm.errors import InputError, TucoError
from tuco_vllm.steering import MAX_ALPHA, MIN_ALPHA, Limits

if TYPE_CHECKING:
    from tuco_vllm.corpus.driver import Workers
    from tuco_vllm.corpus.job import ScoreJob

_INTERRUPTED = 130
_READER_GONE = 141


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; --help and --version raise SystemExit, as argparse has it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    interruption.advise("")
    debug = "--debug" in argv
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    if not debug and argv[:1] != ["serve"]:  # a server's log is for its operator
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault(
            "RAY_DEDUP_LOGS_SKIP_REGEX", "."
        )  # Ray tells stdout of workers that it replaces
    try:
        parser = _parser()
        arguments, unknown = parser.parse_known_args(argv)
        arguments.argv = argv
        if arguments.run is _serve:
            arguments.vllm_flags = unknown
        elif unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # Python's own, where nobody has put handlers
        print(interruption.line(), file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would fail again and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except TucoError as error:
        _say_error(str(error), debug)
        return error.exit_code
    except Exception as error:
        hint = "" if debug else " (--debug shows where)"
        _say_error(f"unexpected {type(error).__name__}: {error}{hint}", debug)
        return 3


def _say_error(message: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"tuco: error: {' '.join(message.split())}", file=sys.stderr)


def _score(arguments: argparse.Namespace) -> int:
    from tuco_vllm.analysis.tables import print_summary
    from tuco_vllm.config import expect_row_dtype, other_adapters, resolve_pair
    from tuco_vllm.corpus.run import score_corpus
    from tuco_vllm.score_requests import expect_streams
    from tuco_vllm.store import store_at

    first, *others = arguments.ft
    pair = resolve_pair(arguments.pt, first, trust_remote_code=arguments.trust_remote_code)
    expect_row_dtype(pair, arguments.row_dtype)
    job = replace(_score_job(arguments), other_fts=other_adapters(others, pair))
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
        start_engine = engine_starter(pair, cluster, _engine_arguments(arguments) | share, job.other_fts)
        return Workers(cluster, start_engine, encoder_maker(job, pair))

    interruption.advise(f"the same command (without --overwrite) goes on from what {job.out} holds")
    score_corpus(job, pair, open_workers, engines=arguments.engines)
    summary = print_summary(store_at(job.out))
    return 1 if arguments.strict and summary.errors else 0


def _score_job(arguments: argparse.Namespace) -> "ScoreJob":
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


def _engine_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; vLLM's own defaults stand for the rest."""
    given = {
        "dtype": arguments.dtype,
        "row_dtype": arguments.row_dtype,
        "max_model_len": arguments.max_model_len,
        "gpu_memory_utilization": arguments.gpu_memory_utilization,
        "enforce_eager": arguments.enforce_eager,
        "trust_remote_code": arguments.trust_remote_code,
    }
    return {name: value for name, value in given.items() if value is not None and value is not False}


def _serve(arguments: argparse.Namespace) -> int:
    from tuco_vllm.server.app import serve

    limits = Limits(arguments.min_alpha, arguments.max_alpha).checked()
    serve(arguments.pt, arguments.ft, arguments.vllm_flags, limits=limits)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from tuco_vllm.analysis.tables import print_status
    from tuco_vllm.corpus.directory import JobDirectory
    from tuco_vllm.records import STATE
    from tuco_vllm.store import store_at

    store = store_at(arguments.directory)
    store.look()
    if not store.list(STATE):
        raise InputError(f"{store.where} holds no tuco run: name the --out of a tuco score")
    print_status(store, JobDirectory(store).running())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from tuco_vllm.demo.run import run_demo

    return run_demo(arguments.out)


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.ft is None and arguments.pt is not None:
        raise InputError("give both --pt and --ft, or neither")
    if arguments.prompts is not None and arguments.ft is None:
        raise InputError("--prompts are for a pair: give --pt and --ft too")
    from tuco_vllm.doctor import run_doctor

    return run_doctor(arguments.pt, arguments.ft, arguments.prompts)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tuco", description="How much fine-tuning contributes to each response (TuCo).")
    parser.add_argument("--version", action="version", version=f"tuco {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show tracebacks and vLLM's log")
        return sub

    _add_score_options(
        command("score", _score, "Score prompts and responses; Parquet out. Resumes by itself.")
    )
    _add_serve_options(command("serve", _serve, "Serve vLLM's OpenAI API with alpha and TuCo in it."))
    status = command("status", _status, "How far a running or finished tuco score is.")
    status.add_argument("directory", metavar="DIR|URL", help="its --out")
    demo = command("demo", _demo, "Score bundled prompts with the bundled pair: table, Parquet and plot.")
    demo.add_argument("--out", type=Path, default=Path("tuco-demo"), help="default: %(default)s")
    doctor = command("doctor", _doctor, "What would work here: versions, backend and, if named, a pair.")
    doctor.add_argument("--pt", help="pre-trained model")
    doctor.add_argument("--ft", help="fine-tuned model, or a LoRA adapter, which names its --pt itself")
    doctor.add_argument(
        "--prompts", type=Path, metavar="FILE", help="what to try the pair on; default: demo's"
    )
    return parser


def _add_score_options(parser: argparse.ArgumentParser) -> None:
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
    add("--max-model-len", type=_positive, metavar="TOKENS")
    add("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto")
    rows = "what 16-bit models' scores are computed in; default: float32 where a family allows it"
    add("--row-dtype", choices=("auto", "float32", "model"), default="auto", help=rows)
    add("--no-layers", action="store_true", help="leave out the per-layer norms")
    add("--no-prompt", action="store_true", help="leave out the prompts' and responses' texts")
    add("--limit", type=_positive, metavar="ROWS", help="score only the first rows")
    add("--engines", type=_positive, default=1, metavar="N", help="engines side by side, on Ray")
    add("--tensor-parallel-size", type=_positive, metavar="N", help="GPUs (or CPU ranks) of each engine")
    stages = "stages of each engine, so many times the GPUs, each with a part of the layers"
    add("--pipeline-parallel-size", type=_positive, metavar="N", help=stages)
    add("--ray-address", metavar="ADDRESS", help="a Ray cluster; default: this machine, nothing to start")
    add("--rows-per-file", type=_positive, default=10_000, metavar="ROWS", help="default: %(default)s")
    add("--overwrite", action="store_true", help="start anew: remove an earlier run's files in --out")
    add("--extend", action="store_true", help="add files that are new to the job in --out to it")
    add("--strict", action="store_true", help="exit with 1 if any row has an error")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with a model")
    add("--gpu-memory-utilization", type=float, metavar="SHARE")
    add("--enforce-eager", action="store_true", help="no torch.compile, no CUDA graphs")


def _add_serve_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pt", metavar="P", help="pre-trained model: directory or hub id org/name[@revision]")
    adapter = "the model fine-tuned from it, or a LoRA adapter of it (more: --lora-modules NAME=PATH)"
    add("--ft", required=True, metavar="F", help=adapter)
    least, most = (
        f"the {which} alpha a request may have; default: %(default)s" for which in ("least", "largest")
    )
    add("--min-alpha", type=float, default=MIN_ALPHA, metavar="A", help=least)
    add("--max-alpha", type=float, default=MAX_ALPHA, metavar="A", help=most)
    parser.epilog = "All other flags are `vllm serve`'s: --port, --api-key, --max-model-len, --dtype, ..."


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
