"""The `tuco` command: parsing, exit codes and nothing else; heavy imports wait until a command needs them.

Exit codes: 0 done, 1 done with row errors (only with --strict), 2 usage or bad input, 3 engine failure,
128 + its number where a signal ended it (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP; see ``interruption.py``). An
error is one line on stderr; --debug shows where it came from.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tuco_vllm import __version__, interruption
from tuco_vllm.commands import build, calibrate, demo, doctor, report, score, serve, status, sweep
from tuco_vllm.errors import InputError, TucoError

_COMMANDS = {
    "build": build,
    "score": score,
    "serve": serve,
    "status": status,
    "sweep": sweep,
    "report": report,
    "calibrate": calibrate,
    "demo": demo,
    "doctor": doctor,
}

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
        if arguments.run is serve.run:
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
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return _READER_GONE  # what rich makes of it, with 1
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
    # Names in it may be strangers': nothing in them is a command to the terminal.
    plain = "".join(letter if letter.isprintable() else " " for letter in message)
    print(f"tuco: error: {' '.join(plain.split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tuco", description="How much fine-tuning contributes to each response (TuCo).")
    parser.add_argument("--version", action="version", version=f"tuco {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.TEXT, description=command.TEXT, allow_abbrev=False)
        sub.set_defaults(run=command.run)
        sub.add_argument("--debug", action="store_true", help="show tracebacks and vLLM's log")
        command.add_options(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
