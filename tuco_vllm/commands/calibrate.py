"""``tuco calibrate``: thresholds at a stated false-positive rate, from rows that are scored already."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from tuco_vllm.commands.options import positive

TEXT = "Thresholds at a stated false-positive rate, from scored rows; JSON for tuco serve --flag."

_MOST = 0.5


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="DIR|URL", help="the --out of tuco score, of one pair and dtype")
    rate = "the share of clean prompts that may be flagged, such as 0.01"
    add("--fpr", type=_rate, required=True, metavar="X", help=rate)
    add("--out", type=Path, required=True, metavar="FILE.json", help="where the thresholds go")
    add(
        "--column",
        default="tuco",
        metavar="NAME",
        help="of scores: response_tuco, path_tuco, ...; default: %(default)s",
    )
    side = "which side of a threshold is flagged; jailbreaks lower TuCo (paper §5.3); default: %(default)s"
    add("--direction", choices=("below", "above"), default="below", help=side)
    given: dict[str, Any] = {"type": _pair, "action": "append", "default": [], "metavar": "COLUMN=VALUE"}
    alike = "again: of one column either value, of several columns all of them"
    clean = f"rows that should not be flagged; default: all that are neither attack nor control; {alike}"
    add("--clean", help=clean, **given)
    add("--attack", help=f"rows that should be: what share is; {alike}", **given)
    control = "rows that share something with attacks (length, template, suffix) and are none; each by itself"
    add("--control", help=control, **given)
    add("--ft", metavar="NAME", help="of a run with several adapters the one, as its column ft has it")
    most = "ranges of prompt length with a threshold each: at most so many; default: %(default)s"
    add("--buckets", type=positive, default=4, metavar="N", help=most)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and print its thresholds. Returns the exit code."""
    import sys

    from tuco_vllm import __version__
    from tuco_vllm.analysis.calibration import Asked, calibrate
    from tuco_vllm.analysis.calibration_file import document, expect_replaceable, print_calibration, save
    from tuco_vllm.analysis.calibration_rows import Wanted, read_rows
    from tuco_vllm.store import store_at

    expect_replaceable(arguments.out)
    stores = list(dict.fromkeys(map(store_at, arguments.runs)))
    controls = tuple((each,) for each in arguments.control)
    wanted = Wanted(tuple(arguments.clean), tuple(arguments.attack), controls)
    rows = read_rows(stores, arguments.column, wanted, arguments.ft)
    for where in rows.unfinished:
        print(f"tuco: warning: {where} is not finished: its rows so far are used", file=sys.stderr)
    if rows.left_out:
        print(f"tuco: {rows.left_out:,} rows have no {arguments.column} and are left out", file=sys.stderr)
    asked = Asked(arguments.fpr, arguments.direction, arguments.buckets)
    calibration = calibrate(rows, wanted, asked)
    command = re.sub(r"://[^/@\s]*@", "://", shlex.join(("tuco", *arguments.argv)))
    made = {"version": __version__, "command": command, "inputs": [store.where for store in stores]}
    save(document(calibration, rows, arguments.column, made), arguments.out)
    print_calibration(calibration, arguments.column)
    return 0


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to {_MOST}")
    return rate


def _pair(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE")
    return column, value
