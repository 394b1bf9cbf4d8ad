"""A calibration as JSON, for ``flagging.Flags``, and as a table for people."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuco_vllm.analysis.calibration import Calibration, Form, Judged, Threshold, named
from tuco_vllm.analysis.calibration_rows import Scored
from tuco_vllm.analysis.statistics import Estimate, proportion
from tuco_vllm.errors import InputError
from tuco_vllm.flagging import FORMAT, VERSION, is_calibration


def document(
    calibration: Calibration, rows: Scored, column: str, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The file's content, as JSON values; ``provenance`` is who made it and from what."""
    origin = rows.origin
    return {
        "format": FORMAT,
        "version": VERSION,
        "pair": {
            "pt": {"name": origin.pt, "fingerprint": origin.pt_fingerprint},
            "ft": {"name": origin.ft, "fingerprint": origin.ft_fingerprint},
        },
        "dtype": origin.dtype,
        "row_dtype": origin.row_dtype,
        "column": column,
        "direction": calibration.direction,
        "fpr": calibration.fpr,
        "templates": [_template(form) for form in calibration.forms],
        "notes": list(calibration.notes),
        "provenance": dict(provenance),
    }


def expect_replaceable(path: Path) -> None:
    """InputError where a file cannot be written, or is another's."""
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no directory {path.parent}")
    if not os.path.lexists(path):
        return
    try:
        ours = path.is_file() and is_calibration(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"--out {path} is there and is no calibration: name another file")


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write it whole or not at all. InputError where the file system refuses."""
    expect_replaceable(path)
    aside = path.with_name(f".{uuid4().hex}.tmp")
    try:
        with aside.open("x") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; name another --out") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def print_calibration(calibration: Calibration, column: str, console: Console | None = None) -> None:
    """The thresholds on stdout, what they do with attacks and controls, and what to mind."""
    console = console or Console()
    for form in calibration.forms:
        beyond = f"{column} {calibration.direction} the threshold, at most {calibration.fpr:g} of clean rows"
        table = Table(title=Text(f"{named(form.template)}: {beyond}"), title_justify="left")
        for heading in ("prompt tokens", "clean rows", "threshold", "95 %", "flagged", "share"):
            table.add_column(heading, justify="right")
        for each in form.thresholds:
            table.add_row(
                f"{each.shortest:,} to {each.longest:,}",
                f"{each.rows:,}",
                f"{each.value:.4f}",
                f"{_end(each.low)} to {_end(each.high)}",
                f"{each.flagged:,}",
                _share(proportion(each.flagged, each.rows)),
            )
        console.print(table)
        if not math.isnan(form.held_out.value):
            console.print(Text(f"clean rows under thresholds made without them: {_share(form.held_out)}"))
        if form.attack is not None:
            console.print(Text(f"attacks {_line(form.attack)}; AUC {form.auc}"))
        for control in form.controls:
            console.print(Text(f"control {_line(control)}"))
    for note in calibration.notes:
        console.print(Text(_plain(note), style="yellow"))


def _line(judged: Judged) -> str:
    beyond = f", {judged.beyond:,} too short or long to judge" if judged.beyond else ""
    share = "none judged" if math.isnan(judged.share.value) else f"flagged {_share(judged.share)}"
    return f"{_plain(judged.name)}: {judged.rows:,} rows, {share}{beyond}"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.2%} [{estimate.low:.2%}, {estimate.high:.2%}]"


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}"


def _plain(text: str) -> str:
    """What strangers wrote, with nothing in it that a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _template(form: Form) -> dict[str, Any]:
    return {
        "template": form.template,
        "buckets": [_bucket(each) for each in form.thresholds],
        "held_out": _figure(form.held_out),
        "attack": None if form.attack is None else {**_judged(form.attack), "auc": _figure(form.auc)},
        "controls": [_judged(each) for each in form.controls],
    }


def _bucket(each: Threshold) -> dict[str, Any]:
    return {
        "tokens": [each.shortest, each.longest],
        "threshold": each.value,
        "low": each.low,
        "high": each.high,
        "rows": each.rows,
        "flagged": each.flagged,
        "share": _figure(proportion(each.flagged, each.rows)),
    }


def _judged(judged: Judged) -> dict[str, Any]:
    counts = {"rows": judged.rows, "flagged": judged.flagged, "not_judged": judged.beyond}
    return {"name": judged.name, **counts, "share": _figure(judged.share)}


def _figure(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate; None of NaN, which JSON does not have."""
    if estimate is None or math.isnan(estimate.value):
        return None
    ends = {
        name: None if math.isnan(end) else end
        for name, end in (("low", estimate.low), ("high", estimate.high))
    }
    return {"value": estimate.value, **ends, "n": estimate.n}
