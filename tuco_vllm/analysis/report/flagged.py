"""The section on flags: which share of each group a calibration of ``tuco calibrate`` would flag."""

import pyarrow as pa

from tuco_vllm.analysis.report.cells import Cells
from tuco_vllm.analysis.report.data import NUMBERS
from tuco_vllm.analysis.report.document import Section, Table, Value
from tuco_vllm.analysis.report.groups import lead, named
from tuco_vllm.analysis.statistics import proportion
from tuco_vllm.flagging import Flags

_SAME = ("pt_fingerprint", "ft_fingerprint", "dtype", "row_dtype")
_SCHEMA = pa.schema(
    [pa.field("of_part", pa.int32())]
    + [pa.field(name, pa.float64()) for name in ("shortest", "longest", "threshold")]
)


def flagged(cells: Cells, flags: Flags | None) -> Section:
    """Shares of the rows that have a threshold: of the calibration's pair, dtypes, forms and lengths."""
    section = Section("flagged", "What a calibration flags")
    runs = cells.runs
    if flags is None:
        section.left_out = "no calibration was named (--flags FILE)"
        return section
    if flags.column not in NUMBERS or not runs.has(flags.column):
        section.left_out = f"the calibration is of the column {flags.column}, which no scored row has"
        return section
    scored = dict(runs.all("SELECT part, count(*) FROM rows WHERE error IS NULL GROUP BY part"))
    mixed = {
        number for number, (_, _, said) in enumerate(runs.parts) if _is_mixed(said, scored.get(number, 0))
    }
    if mixed:
        section.words.append(
            f"{len(mixed):,} parts have prompts with a chat template and prompts without, and do not say "
            "which is which: their rows have no threshold."
        )
    thresholds = [
        {"of_part": number, "shortest": b.shortest, "longest": b.longest, "threshold": b.threshold}
        for number, (_, _, said) in enumerate(runs.parts)
        if number not in mixed and all(_of_part(said, name) == getattr(flags, name) for name in _SAME)
        for b in flags.templates.get(_form(said), ())
    ]
    if not thresholds:
        section.left_out = (
            "no part of the runs is of the calibration's models, dtypes and form of prompts "
            f"({flags.ft[:100]}, {flags.dtype}, {flags.row_dtype})"
        )
        return section
    runs.database.register("given", pa.Table.from_pylist(thresholds, _SCHEMA))
    sign = "<" if flags.direction == "below" else ">"
    query = (
        f"SELECT cell, count({flags.column}), count(threshold),"
        f" count(*) FILTER (WHERE {flags.column} {sign} threshold)"
        " FROM rows LEFT JOIN given ON part = of_part AND prompt_tokens BETWEEN shortest AND longest"
        f" WHERE tuco IS NOT NULL AND {flags.column} IS NOT NULL GROUP BY cell ORDER BY cell"
    )
    rows: list[tuple[Value, ...]] = [
        (*named(cells, cell), n, judged, hits, proportion(hits, judged))
        for cell, n, judged, hits in runs.all(query)
    ]
    section.words.append(
        f"Flagged is a {flags.column} {flags.direction} the threshold of the prompt's form and length, which "
        f"was set so that at most {flags.fpr:.3g} of clean rows are. Shares are of the rows that have a "
        "threshold, with 95 % intervals; rows of another form or length than was calibrated have none."
    )
    section.tables.append(Table("flagged", (*lead(cells), "n", "judged", "flagged", "share"), rows))
    return section


def _of_part(said: dict[str, str], name: str) -> str:
    """A part's metadata; rows of runs of before there were other rows are in the model's dtype."""
    return said.get(name, said.get("dtype", "") if name == "row_dtype" else "")


def _is_mixed(said: dict[str, str], scored: int) -> bool:
    """Whether a template made some of a part's scored prompts, but not all."""
    templated = said.get("templated_rows", "")
    return said.get("template_applied") == "true" and templated.isdecimal() and int(templated) < scored


def _form(said: dict[str, str]) -> str | None:
    return said.get("chat_template_sha256", "") if said.get("template_applied") == "true" else None
