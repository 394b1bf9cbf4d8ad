"""``tuco report``: finished runs in, one HTML file and CSV tables out."""

import argparse
from pathlib import Path

TEXT = "What scored runs show: one HTML file to read, CSV tables beside it."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="DIR|URL", help="the --out of a tuco score; several stand side by side")
    group = "a column whose values make groups; default: the column group, if there is one"
    add("--group", metavar="COLUMN", help=group)
    add("--against", metavar="VALUE", help="the group that others are compared with; default: the largest")
    add("--by", metavar="COLUMN", help="a column of numbers to hold TuCo against, say the number of shots")
    add("--no-text", action="store_true", help="leave out all texts of prompts")
    flags = "a calibration of tuco calibrate: the share of each group that it flags"
    add("--flags", metavar="FILE.json", help=flags)
    place = "default: %(default)s; the tables go into FILE-tables"
    add("--out", type=Path, default=Path("tuco-report.html"), metavar="FILE.html", help=place)


def run(arguments: argparse.Namespace) -> int:
    """Write the report, and print its main table. Returns the exit code."""
    from tuco_vllm.analysis.report.build import Wishes, write_report
    from tuco_vllm.flagging import Flags

    flags = None if arguments.flags is None else Flags.read(arguments.flags)
    wishes = Wishes(arguments.group, arguments.against, arguments.by, not arguments.no_text, flags)
    write_report(arguments.runs, arguments.out, wishes)
    return 0
