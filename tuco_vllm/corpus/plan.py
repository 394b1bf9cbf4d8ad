"""Before anything is scored: what the inputs hold, and the units in which they are scored.

`surveyed` reads every file once (of Parquet the footer). That parses all rows, which costs little beside
scoring them, and gives what a sample could not: the columns' types, the exact number of rows, and marks, the
places where reading can begin. `Plan.of` cuts the rows into units at such marks. Both give the same for the
same files, in whatever order and by whatever processes these are read; a job keeps them all the same, so that
a resumed one need not read what it has done.
"""

import io
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuco_vllm.corpus.columns import Columns, FoundColumns, Survey
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.json_text import parse_json
from tuco_vllm.corpus.parquet_files import parquet_column, parquet_layout
from tuco_vllm.corpus.readers import read_records
from tuco_vllm.corpus.unit import Unit
from tuco_vllm.prompt_checks import ends_with_assistant

MARK_ROWS = 1024
MARK_BYTES = 1 << 18
"""A mark stands after so many rows, and where that comes first after so many bytes."""

_MOST_FILES = 4096
"""In a unit."""

PLAN_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("first", pa.int64()),
        ("row", pa.int64()),
        ("rows", pa.int32()),
        ("offset", pa.int64()),
        ("ft", pa.int32()),
        ("more", pa.list_(pa.int32())),
    ]
)
"""The fields of a Unit but for its number, which is the row's."""


@dataclass(frozen=True)
class FileSurvey:
    """What one file holds. Picklable and small: some bytes for every thousand rows."""

    rows: int
    found: FoundColumns
    turns: bool
    """Whether any of its chats ends with a response."""
    records: "array[int]"
    """How many records lie before each mark; the first mark is the file's beginning, the last its end."""
    offsets: "array[int]"
    """How many bytes lie before it."""
    by_number: bool
    """Whether reading can begin at any record (Parquet): marks are row groups then, and only say how many
    bytes the rows have."""


SurveyFile = Callable[[InputFile], FileSurvey]


def surveyed(
    files: Sequence[InputFile],
    columns: Columns,
    limit: int | None = None,
    *,
    mark_rows: int = MARK_ROWS,
    each: Callable[[SurveyFile, Sequence[InputFile]], Iterable[FileSurvey]] = map,
) -> tuple[Survey, list[FileSurvey]]:
    """What the inputs hold, together and each for itself.

    ``each`` is ``map``, or like it with other processes; where there is a ``limit`` to the rows, a file is
    read after the other, and no more of them than that. Raises InputError for the first file, in their order,
    that cannot be read or lacks the columns asked for.
    """
    if limit is None:
        surveys = each(partial(survey_file, columns=columns, mark_rows=mark_rows), files)
    else:
        surveys = _up_to(limit, files, columns, mark_rows)
    rows, turns, kept = 0, False, []
    together = FoundColumns(columns.asked_for)
    for file, survey in zip(files, surveys, strict=True):
        known = together.names - survey.found.names
        if survey.found.has_others and known:  # columns which there was no room for that have one here
            survey = survey_file(file, columns, survey.rows, mark_rows=mark_rows, besides=known)
        survey.found.check(file, columns)
        together.add(survey.found)
        rows, turns = rows + survey.rows, turns or survey.turns
        kept.append(survey)
    return together.survey(columns, rows, turns), kept


def survey_file(
    file: InputFile,
    columns: Columns,
    limit: int | None = None,
    *,
    mark_rows: int = MARK_ROWS,
    besides: AbstractSet[str] = frozenset(),
) -> FileSurvey:
    """What the first ``limit`` rows of a file hold; of columns there are many of, those ``besides`` in any
    case. Raises InputError as the readers do."""
    found = FoundColumns(columns.asked_for | besides)
    if file.format == "parquet":
        return _survey_parquet(file, columns, limit, found)
    messages = columns.messages if columns.score != "prompt" else None
    rows, end, turns = 0, 0, False
    records, offsets = array("q", [0]), array("q", [0])
    for record in islice(read_records(file, prompt_column=columns.prompt), limit):
        rows, end = rows + 1, record.end
        found.add_record(record.columns)
        turns = turns or (messages is not None and _ends_with_response(record.columns.get(messages)))
        if rows % mark_rows == 0 or end - offsets[-1] >= MARK_BYTES:
            records.append(rows)
            offsets.append(end)
    if rows != records[-1]:
        records.append(rows)
        offsets.append(end)
    return FileSurvey(rows, found, turns, records, offsets, by_number=False)


def _survey_parquet(file: InputFile, columns: Columns, limit: int | None, found: FoundColumns) -> FileSurvey:
    schema, groups = parquet_layout(file)
    found.add_schema(file, schema)
    turns = False
    messages = columns.messages if columns.score != "prompt" else None
    if messages is not None and messages in found.names:
        chats = (chat for batch in parquet_column(file, messages) for chat in batch.to_pylist())
        turns = any(map(_ends_with_response, islice(chats, limit)))
    records, offsets = array("q", [0]), array("q", [0])
    for rows, size in groups:
        records.append(records[-1] + rows)
        offsets.append(offsets[-1] + size)
    rows = records[-1] if limit is None else min(records[-1], limit)
    return FileSurvey(rows, found, turns, records, offsets, by_number=True)


def _up_to(limit: int, files: Sequence[InputFile], columns: Columns, mark_rows: int) -> Iterator[FileSurvey]:
    for file in files:
        if not limit:  # what lies behind it is not looked at
            yield FileSurvey(
                0, FoundColumns(columns.asked_for), False, array("q", [0]), array("q", [0]), False
            )
            continue
        yield (survey := survey_file(file, columns, limit, mark_rows=mark_rows))
        limit -= survey.rows


def _ends_with_response(messages: Any) -> bool:
    """Whether a row's messages, JSON text or not, end with an assistant turn."""
    if isinstance(messages, str):
        try:
            messages = parse_json(messages)
        except ValueError:
            return False
    return ends_with_assistant(messages)


class Plan:
    """The units of a corpus, in its order. There may be millions: each is an object only when asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._columns = [table[name].to_numpy() for name in PLAN_SCHEMA.names[:-1]]

    @classmethod
    def of(cls, surveys: Sequence[FileSurvey], unit_rows: int, unit_bytes: int, fts: int = 1) -> "Plan":
        """The plan of files as they were surveyed.

        A unit ends with a file, or at the first mark at which it has ``unit_rows`` or ``unit_bytes``; in
        Parquet, before it has more than these. Files that follow each other share one where all of them fit
        in it. A corpus without rows has one unit, as it becomes a table all the same.
        """
        numbers, more, row = array("q"), [], 0
        for file, first, rows, offset, others in _pieces(surveys, unit_rows, unit_bytes):
            for ft in range(fts):
                numbers.extend((file, first, row, rows, offset, ft))
                more.append(others)
                row += rows
        if not more:
            numbers.extend((0,) * (len(PLAN_SCHEMA) - 1))
            more.append([])
        columns = np.array(numbers, np.int64).reshape(len(more), -1).T
        table = pa.table([*columns, pa.array(more, pa.list_(pa.int32()))], names=PLAN_SCHEMA.names)
        return cls(table.cast(PLAN_SCHEMA))

    def followed_by(self, more: "Plan", files: int) -> "Plan":
        """A plan with the units of ``more`` behind these, whose corpus has so many files."""
        table = more.table
        moved = {"file": pc.add(table["file"], files), "row": pc.add(table["row"], self.rows)}
        for name, column in moved.items():
            place = PLAN_SCHEMA.get_field_index(name)
            table = table.set_column(
                place, PLAN_SCHEMA.field(name), column.cast(PLAN_SCHEMA.field(name).type)
            )
        return Plan(pa.concat_tables([self.table, table]).combine_chunks())

    @classmethod
    def from_parquet(cls, data: bytes) -> "Plan":
        """What ``to_parquet`` wrote."""
        return cls(pq.read_table(io.BytesIO(data)))

    def to_parquet(self) -> bytes:
        """As a Parquet file."""
        sink = io.BytesIO()
        pq.write_table(
            self.table, sink, compression="zstd", use_dictionary=False, column_encoding="DELTA_BINARY_PACKED"
        )
        return sink.getvalue()

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def rows(self) -> int:
        """Of all units."""
        last = self.unit(len(self) - 1)
        return last.row + last.rows

    def unit(self, number: int) -> Unit:
        """The unit of that number, from 0."""
        file, first, row, rows, offset, ft = (int(column[number]) for column in self._columns)
        return Unit(number, file, first, row, rows, offset, ft, tuple(self.table["more"][number].as_py()))


def _pieces(
    surveys: Sequence[FileSurvey], unit_rows: int, unit_bytes: int
) -> Iterator[tuple[int, int, int, int, list[int]]]:
    """File, first record, rows and offset of each unit, and the rows of further files in it."""
    begun, counts, size = (
        0,
        [0],
        0,
    )  # of the files at hand that share a unit: the first, their rows, their bytes
    for file, survey in enumerate(surveys):
        cut = _units_anywhere if survey.by_number else _units_at_marks
        own = [*cut(survey, unit_rows, unit_bytes)]
        whole = survey.offsets[-1]
        fits = sum(counts) + survey.rows <= unit_rows and size + whole <= unit_bytes
        if len(own) < 2 and fits and len(counts) < _MOST_FILES and file:
            counts.append(survey.rows)
            size += whole
            continue
        if sum(counts):
            yield begun, 0, sum(counts), 0, counts[1:]
        begun, counts, size = file, [survey.rows], whole
        if len(own) > 1:
            yield from ((file, *each, []) for each in own)
            begun, counts, size = file + 1, [], 0
    if sum(counts):
        yield begun, 0, sum(counts), 0, counts[1:]


def _units_at_marks(survey: FileSurvey, unit_rows: int, unit_bytes: int) -> Iterator[tuple[int, int, int]]:
    first = offset = 0
    for record, end in zip(survey.records, survey.offsets, strict=True):
        if record - first >= unit_rows or end - offset >= unit_bytes or record == survey.rows > first:
            yield first, record - first, offset
            first, offset = record, end


def _units_anywhere(survey: FileSurvey, unit_rows: int, unit_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Bytes are taken to lie evenly in a row group."""
    records, sizes = np.array(survey.records, float), np.array(survey.offsets, float)
    first = 0
    while first < survey.rows:
        size = np.interp(first, records, sizes)
        after = int(np.interp(size + unit_bytes, sizes, records))
        last = min(first + unit_rows, max(after, first + 1), survey.rows)
        yield first, last - first, 0
        first = last
