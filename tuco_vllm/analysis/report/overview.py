"""Sections on the runs as such: where they come from, what could not be scored, ids that repeat, outliers."""

from collections.abc import Iterator

import pyarrow.parquet as pq

from tuco_vllm.analysis.parts import fixed_columns, opened_part
from tuco_vllm.analysis.report.cells import Cells
from tuco_vllm.analysis.report.document import Section, Table, Value
from tuco_vllm.analysis.rounding import rounding_warning

_FACTS = {
    "pt": "PT",
    "ft": "FT",
    "pt_fingerprint": "PT fingerprint",
    "ft_fingerprint": "FT fingerprint",
    "dtype": "dtype",
    "row_dtype": "row dtype",
    "chat_template_sha256": "chat template",
    "template_applied": "template applied",
    "schema_version": "schema",
    "version": "tuco_vllm",
    "vllm_version": "vLLM",
    "command": "command",
}
_MUST_AGREE = {
    "pt_fingerprint": "PT",
    "chat_template_sha256": "the chat template",
    "template_applied": "whether a template was applied",
    "dtype": "the dtype",
    "row_dtype": "the row dtype",
}
_OUTLIERS, _SHOWN, _GROUPS_SHOWN = 10, 5, 8
_HEAD, _TAIL = 160, 80
"""Letters of a text's begin and end: TuCo is of its last token."""


def warnings(cells: Cells) -> list[str]:
    """What a reader must know before the numbers."""
    sources, said = cells.runs.sources, []
    for source in sources:
        if source.unfinished:
            said.append(f"{source.label} is unfinished: {source.unfinished}.")
    for name, what in _MUST_AGREE.items():
        if len({source.fact(name) for source in sources}) > 1:
            named = "; ".join(f"{source.label}: {source.fact(name)[:40] or 'not said'}" for source in sources)
            said.append(f"The runs differ in {what} ({named}): their scores do not compare.")
    for series in range(len(cells.runs.series)):
        query = f"SELECT median(tuco) FROM sample JOIN cells USING (cell) WHERE series = {series}"
        [median] = cells.runs.one(query)
        if median is not None and (warning := rounding_warning(*cells.dtypes(series), median)):
            said.append(f"{cells.series_name(series)}: {warning}")
    if cells.runs.odd_layers:
        said.append(
            f"{cells.runs.odd_layers:,} rows have lists of another length than their run's first row: "
            "their layers are left out."
        )
    return said


def provenance(cells: Cells) -> Section:
    """A column for each run."""
    sources = cells.runs.sources
    rows: list[tuple[Value, ...]] = [
        ("place", *(source.store.where for source in sources)),
        ("state", *(source.unfinished or "finished" for source in sources)),
        ("parts", *(f"{len(source.parts):,}" for source in sources)),
    ]
    for name, label in _FACTS.items():
        values = [source.fact(name) for source in sources]
        if any(values):
            rows.append((label, *(value or "not said" for value in values)))
    table = Table("provenance", ("", *(source.label for source in sources)), rows)
    words = [
        f"{name}: the runs have no such metadata (an earlier version wrote them)." for name in _missing(cells)
    ]
    return Section("provenance", "Where the scores come from", words, tables=[table])


def _missing(cells: Cells) -> list[str]:
    return [label for name, label in _FACTS.items() if not any(s.fact(name) for s in cells.runs.sources)]


def rows(cells: Cells, texts: bool) -> Section:
    """How many rows there are, why some have no score, and which ids repeat."""
    runs = cells.runs
    counted: list[tuple[Value, ...]] = []
    for cell in range(len(runs.cells)):
        s = cells.spreads[cell]
        run = cells.series_name(runs.cells[cell].series)
        counted.append((run, cells.name(cell), s.rows, s.n, s.errors, s.rows - s.n - s.errors))
    headings = ("run", "group", "rows", "scored", "errors", "no finite score")
    tables = [Table("rows", headings, counted, shown=25)]
    failed = sum(s.errors for s in cells.spreads.values())
    unusable = sum(s.rows - s.n for s in cells.spreads.values()) - failed
    words = [
        f"{sum(s.rows for s in cells.spreads.values()):,} rows, of which {cells.scored:,} were scored, "
        f"{failed:,} have an error and {unusable:,} no finite score; only scored ones count below."
    ]
    if failed:
        reason = "regexp_replace(error, '[0-9]+', 'N', 'g')"
        if not texts:
            reason = f"regexp_extract({reason}, '^[^:]*')"  # what follows may be a prompt's text
        query = (
            f"SELECT series, {reason} AS reason, count(*) AS n FROM rows JOIN cells USING (cell)"
            " WHERE error IS NOT NULL GROUP BY ALL ORDER BY n DESC, series, reason LIMIT 200"
        )
        found: list[tuple[Value, ...]] = [
            (cells.series_name(series), text[:1000], n) for series, text, n in runs.all(query)
        ]
        tables.append(
            Table("errors", ("run", "reason", "rows"), found, "Numbers in reasons are N.", shown=10)
        )
    words.append(_duplicates(cells, tables))
    return Section("rows", "Rows, errors, repeated ids", words, tables=tables)


def _duplicates(cells: Cells, tables: list[Table]) -> str:
    query = (
        "SELECT series, count(*), sum(n), arg_max(id, n), max(n) FROM"
        " (SELECT series, id, count(*) AS n FROM rows JOIN cells USING (cell)"
        " WHERE id IS NOT NULL GROUP BY series, id HAVING count(*) > 1)"
        " GROUP BY series ORDER BY series"
    )
    found: list[tuple[Value, ...]] = [
        (cells.series_name(series), ids, int(rows), example[:200], most)
        for series, ids, rows, example, most in cells.runs.all(query)
    ]
    if not found:
        return "No id occurs twice in a run."
    headings = ("run", "ids", "rows", "most frequent", "times")
    tables.append(Table("repeated_ids", headings, found))
    return (
        "Some ids occur several times in a run. Their rows count one by one, and are left out where runs are "
        "joined."
    )


def outliers(cells: Cells, texts: bool) -> Section:
    """The rows of each group with the highest and the lowest TuCo."""
    section = Section("outliers", "Highest and lowest")
    found: list[tuple[int, str, int, int, str, float, float | None]] = []
    for series in range(len(cells.runs.series)):
        for cell in cells.of(series):
            seen: set[tuple[int, int]] = set()
            for end, order in (("highest", "DESC"), ("lowest", "ASC")):
                query = (
                    f"SELECT part, place, id, tuco, prompt_tokens FROM rows WHERE cell = {cell}"
                    f" AND tuco IS NOT NULL ORDER BY tuco {order}, part, place LIMIT {_OUTLIERS}"
                )
                for part, place, name, tuco, tokens in cells.runs.all(query):
                    if (part, place) not in seen:
                        seen.add((part, place))
                        found.append((cell, end, part, place, name, tuco, tokens))
    if not found:
        section.left_out = "no row was scored"
        return section
    prompts = _texts(cells, {(part, place) for _, _, part, place, *_ in found}) if texts else {}
    if not texts:
        section.words.append("Texts are left out (--no-text).")
    elif not any(prompts.values()):
        section.words.append("The runs hold no texts of prompts.")
    whole: list[tuple[Value, ...]] = []
    by_cell: dict[int, list[tuple[Value, ...]]] = {}
    for cell, end, part, place, name, tuco, tokens in found:
        text = (prompts.get((part, place)) or "",) if any(prompts.values()) else ()
        row: tuple[Value, ...] = (end, tuco, *text, None if tokens is None else int(tokens), _cut(name))
        whole.append((cells.series_name(cells.runs.cells[cell].series), cells.name(cell), *row))
        shown = by_cell.setdefault(cell, [])
        if sum(each[0] == end for each in shown) < _SHOWN:
            shown.append(row)
    headings = ("end", "TuCo", *(("prompt",) if any(prompts.values()) else ()), "prompt tokens", "id")
    for cell in list(by_cell)[:_GROUPS_SHOWN]:
        section.tables.append(Table("", headings, by_cell[cell], _name(cells, cell)))
    section.tables.append(Table("outliers", ("run", "group", *headings), whole, shown=0))
    return section


def _name(cells: Cells, cell: int) -> str:
    series = cells.runs.cells[cell].series
    name = cells.name(cell)
    return name if len(cells.runs.series) == 1 else f"{cells.series_name(series)} · {name}"


def _texts(cells: Cells, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Prompts by part and place in it, shortened."""
    found = {}
    for number in sorted({part for part, _ in wanted}):
        source, name, _ = cells.runs.parts[number]
        places = sorted(place for part, place in wanted if part == number)
        with opened_part(source.store, name) as part:
            if "prompt" in fixed_columns(part.schema_arrow):
                found.update({(number, place): _cut(text) for place, text in _prompts(part, places)})
    return found


def _prompts(part: pq.ParquetFile, places: list[int]) -> Iterator[tuple[int, str]]:
    begin = 0
    for group in range(part.num_row_groups):
        end = begin + part.metadata.row_group(group).num_rows
        if inside := [place for place in places if begin <= place < end]:
            column = part.read_row_group(group, columns=["prompt"]).column(0)
            yield from ((place, column[place - begin].as_py() or "") for place in inside)
        begin = end


def _cut(text: str) -> str:
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]} … {text[-_TAIL:]}"
