"""Files -> records, one format a function; memory is bounded by the largest record (Parquet: row group).

A broken record becomes a record with an error, so that its row is kept and the job goes on. A file that
cannot be read at all, or not to its end, raises InputError. So does a broken CSV record that goes over
several lines (``csv_text.py``), and any broken element of a JSON array, as it may have taken others into its
own; what is JSON but no row costs itself only.

Each format is first cut into records, which are then parsed one by one. So reading can begin at any record:
at its place in the bytes, in Parquet at its number; what is compressed is cut from the beginning on, but the
records before are not parsed. And a record that nobody dares to touch can be passed over.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from tuco_vllm.corpus.content import UnusableContent, opened, reading
from tuco_vllm.corpus.csv_text import csv_rows
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.json_text import array_elements, parse_json
from tuco_vllm.corpus.parquet_files import parquet_file, parquet_rows
from tuco_vllm.prompt_checks import kind_of

_BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Record:
    """One record: what could be read of its columns, and what is wrong with it, if anything.

    Values are Python's, and pyarrow scalars from Parquet, which keep their exact type on the way through.
    """

    columns: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    end: int = 0
    """Where the next record can be read from: a place in the file's content, in bytes; 0 in Parquet."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two records, where reading can begin."""

    record: int = 0
    """The number of the record that follows."""
    offset: int = 0
    """The ``end`` of the one before."""


_Cuts = Iterator[tuple[Callable[[], Record], int]]
"""Of each record what parses it, and its end."""


def read_records(
    file: InputFile, *, prompt_column: str = "prompt", start: Mark | None = None
) -> Iterator[Record]:
    """A file's records from ``start`` on; a line of txt becomes the one column ``prompt_column``."""
    with closing(RecordReader(file, prompt_column)) as reader:
        yield from reader.read(start or Mark())


class RecordReader:
    """A file that stays open and is read from one mark after the other. For one thread at a time."""

    def __init__(self, file: InputFile, prompt_column: str = "prompt") -> None:
        self.file = file
        self.next = 0
        """The number of the record that comes next as long as nobody says where to begin."""
        self._prompt_column = prompt_column
        self._stack = ExitStack()
        self._cut: Callable[[Mark], _Cuts] | None = None
        """Of the open file, the records from a mark on."""
        self._cuts: _Cuts = iter(())
        self._addressable = True
        """Whether reading can begin anywhere; else only at the beginning."""

    def read(self, start: Mark, refused: Mapping[int, str] | None = None) -> Iterator[Record]:
        """The records from ``start`` on; those with ``refused`` numbers are not parsed and get that error."""
        errors = refused or {}
        with reading(self.file):
            self._go_to(start)
            for parse, end in self._cuts:
                number, self.next = self.next, self.next + 1
                record = Record(error=errors[number]) if number in errors else parse()
                record.end = end
                yield record

    def close(self) -> None:
        """Close the file. Reading opens it again."""
        self._stack.close()
        self._cut = None

    def _go_to(self, start: Mark) -> None:
        if self._cut is None or (start.record < self.next and not self._addressable):
            self.close()
            self._cut = self._open()
            self._cuts, self.next = self._cut(Mark()), 0
        if start.record != self.next and self._addressable:
            self._cuts, self.next = self._cut(start), start.record
        for _ in islice(self._cuts, start.record - self.next):
            self.next += 1

    def _open(self) -> Callable[[Mark], _Cuts]:
        file = self.file
        if file.format == "parquet":
            return partial(_parquet, self._stack.enter_context(parquet_file(file)))
        if file.size == 0:  # a compressed empty file may also be nothing at all
            return lambda start: iter(())
        stream = self._stack.enter_context(opened(file))
        self._addressable = stream.seekable()
        cut: Callable[[io.BufferedReader, Mark], _Cuts] = _jsonl
        if file.format == "csv":
            cut = partial(_csv, delimiter="\t" if file.extension == ".tsv" else ",")
        elif file.format == "txt":
            cut = partial(_txt, column=self._prompt_column)
        elif file.extension == ".json":
            cut = _json

        def from_mark(start: Mark) -> _Cuts:
            if self._addressable:
                stream.seek(0)  # a header, or the bracket of an array, comes first
            return cut(stream, start)

        return from_mark


def _lines(stream: io.BufferedReader, start: Mark) -> Iterator[tuple[bytes, int]]:
    """Split at line feeds only: str.splitlines would also split at U+2028, which JSON and text may hold."""
    end = start.offset
    if end:
        stream.seek(end)
    for line in stream:
        end += len(line)
        yield line.removeprefix(_BOM) if end == len(line) else line, end


def _decode(data: bytes, what: str = "line") -> tuple[str, str | None]:
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        return data.decode(errors="replace"), f"invalid UTF-8 at byte {error.start} of the {what}"


def _txt(stream: io.BufferedReader, start: Mark, column: str) -> _Cuts:
    for line, end in _lines(stream, start):
        yield partial(_txt_record, line, column), end


def _txt_record(line: bytes, column: str) -> Record:
    text, error = _decode(line.removesuffix(b"\n").removesuffix(b"\r"))
    return Record({column: text}, error)


def _jsonl(stream: io.BufferedReader, start: Mark) -> _Cuts:
    for line, end in _lines(stream, start):
        if line.strip():
            yield partial(_line_record, line), end


def _json(stream: io.BufferedReader, start: Mark) -> _Cuts:
    """An array of rows, or a row a line."""
    head = stream.peek(1).removeprefix(_BOM).lstrip()
    if head.startswith(b"["):
        for number, (element, end) in enumerate(array_elements(stream, start.offset), start.record):
            yield partial(_element_record, number, element), end
    elif head.partition(b"\n")[0].strip() == b"{":
        raise UnusableContent("it is one object over several lines: write an array of rows, or a row a line")
    else:
        yield from _jsonl(stream, start)


def _line_record(line: bytes) -> Record:
    text, error = _decode(line)
    try:
        return _json_record(text, error)
    except ValueError as broken:
        return Record(error=error or f"broken JSON: {broken}")


def _element_record(number: int, element: bytes) -> Record:
    text, error = _decode(element, "element")
    try:
        return _json_record(text, error)
    except json.JSONDecodeError as broken:
        raise UnusableContent(f"element {number} of its array is broken: {broken}") from broken
    except ValueError as refused:
        return Record(error=error or f"broken JSON: {refused}")


def _json_record(text: str, error: str | None) -> Record:
    """The record that a text holds, with the ``error`` that it has already. Raises ValueError."""
    value = parse_json(text)
    if not isinstance(value, dict):
        return Record(error=f"broken record: it is {kind_of(value)}, not an object")
    if "\\u" in text:  # only an escape can make a lone surrogate, which no output column can hold
        written = json.dumps(value, ensure_ascii=False)
        try:
            written.encode()
        except UnicodeEncodeError as broken:
            code = f"\\u{ord(written[broken.start]):04x}"
            value = json.loads(written.encode(errors="replace"))
            error = error or f"the record holds a lone surrogate ({code}), which is not text"
    return Record(value, error)


def _csv(stream: io.BufferedReader, start: Mark, delimiter: str) -> _Cuts:
    for header, fields, end in csv_rows(stream, delimiter, start.offset):
        yield partial(_csv_record, header, fields), end


def _csv_record(header: list[str], fields: list[str] | csv.Error) -> Record:
    if isinstance(fields, csv.Error):
        return Record(error=f"broken CSV: {fields}")
    error = None
    if len(fields) != len(header):
        error = f"broken CSV: the row has {len(fields)} fields, the header {len(header)}"
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        fields = [value.encode(errors="surrogateescape").decode(errors="replace") for value in fields]
        error = "invalid UTF-8 in the row"
    return Record(dict(zip(header, fields, strict=False)), error)


def _parquet(parquet: Any, start: Mark) -> _Cuts:
    names = parquet.schema_arrow.names
    for values in parquet_rows(parquet, start.record):
        yield partial(_parquet_record, names, values), 0


def _parquet_record(names: list[str], values: tuple[Any, ...]) -> Record:
    return Record({n: v if v.is_valid else None for n, v in zip(names, values, strict=True)})
