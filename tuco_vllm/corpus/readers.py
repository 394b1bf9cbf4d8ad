"""Files -> records, one format a function; memory is bounded by the largest record (Parquet: row group).

A broken record becomes a record with an error, so that its row is kept and the job goes on. A file that
cannot be read at all, or not to its end, raises InputError: how many rows it still holds is unknown, so
going on would lose them silently. So does a broken CSV record that goes over several lines: a quote that is
never closed takes all rows up to the next quote, or to the end of the file, into its own. In a JSON array
every broken element is refused, as it may have taken others into its own; what is JSON but no row costs
itself only.
"""

import csv
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.json_text import BrokenJson, array_elements, parse_json
from tuco_vllm.corpus.unions import fits
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import kind_of

_BOM = b"\xef\xbb\xbf"

_LONGEST_FIELD = 1 << 26
"""Characters of a CSV field: what is held in memory of a quote that is never closed."""


@dataclass(slots=True)
class Record:
    """One record: what could be read of its columns, and what is wrong with it, if anything.

    Values are Python's, and pyarrow scalars from Parquet, which keep their exact type on the way through.
    """

    columns: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_records(file: InputFile, *, prompt_column: str = "prompt") -> Iterator[Record]:
    """Every record of a file in order; a line of txt becomes the one column ``prompt_column``."""
    with _named(file):
        if file.format == "parquet":
            yield from _parquet(file)
            return
        if file.size == 0:  # a compressed empty file may also be nothing at all
            return
        with _stream(file) as stream:
            if file.format == "jsonl":
                yield from _json(stream) if file.extension == ".json" else _jsonl(stream)
            elif file.format == "csv":
                yield from _csv(stream, delimiter="\t" if file.extension == ".tsv" else ",")
            else:
                yield from _txt(stream, prompt_column)


def parquet_layout(file: InputFile) -> tuple[int, pa.Schema]:
    """A Parquet file's row count and schema, from its footer."""
    with _named(file), _parquet_file(file) as parquet:
        schema = parquet.schema_arrow
        _check_unique(schema.names)
        return parquet.metadata.num_rows, schema


def parquet_column_fits(file: InputFile, name: str, target: pa.DataType) -> bool:
    """Whether all values of a Parquet file's column can be cast to ``target`` unchanged: they are read."""
    return all(fits(column, target) for column in parquet_column(file, name))


def parquet_column(file: InputFile, name: str) -> Iterator[pa.Array]:
    """A column's values, some at a time."""
    with _named(file), _parquet_file(file) as parquet:
        for batch in parquet.iter_batches(batch_size=1024, columns=[name]):
            yield batch.column(name)


@contextmanager
def _named(file: InputFile) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {file.path} as {file.format}: {str(error).strip()}") from error
    except (BrokenJson, _UnusableFile) as error:
        raise InputError(f"cannot read {file.path} as {file.format}: {error}") from error


class _UnusableFile(Exception):
    """Says what is wrong; the file's name is added above."""


@contextmanager
def _stream(file: InputFile) -> Iterator[io.BufferedReader]:
    """The file's content; pyarrow raises OSError for compressed bytes that end too early."""
    with file.open() as stored:
        try:
            codec = pa.Codec.detect(file.file_name.lower()).name
        except TypeError:  # of an extension that is no codec's
            yield stored
            return
        with pa.input_stream(stored, compression=codec) as content:
            yield io.BufferedReader(content, buffer_size=1 << 20)


def _lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """Split at line feeds only: str.splitlines would also split at U+2028, which JSON and text may hold."""
    for number, line in enumerate(stream):
        yield line.removeprefix(_BOM) if number == 0 else line


def _decode(data: bytes, what: str = "line") -> tuple[str, str | None]:
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        return data.decode(errors="replace"), f"invalid UTF-8 at byte {error.start} of the {what}"


def _txt(stream: io.BufferedReader, column: str) -> Iterator[Record]:
    for line in _lines(stream):
        text, error = _decode(line.removesuffix(b"\n").removesuffix(b"\r"))
        yield Record({column: text}, error)


def _json(stream: io.BufferedReader) -> Iterator[Record]:
    """An array of rows, or a row a line."""
    start = stream.peek(1).removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        yield from _json_array(stream)
    elif start.partition(b"\n")[0].strip() == b"{":
        raise _UnusableFile("it is one object over several lines: write an array of rows, or a row a line")
    else:
        yield from _jsonl(stream)


def _json_array(stream: io.BufferedReader) -> Iterator[Record]:
    for number, element in enumerate(array_elements(stream)):
        text, error = _decode(element, "element")
        try:
            yield _json_record(text, error)
        except json.JSONDecodeError as broken:
            raise _UnusableFile(f"element {number} of its array is broken: {broken}") from broken
        except ValueError as refused:
            yield Record(error=error or f"broken JSON: {refused}")


def _jsonl(stream: io.BufferedReader) -> Iterator[Record]:
    for line in _lines(stream):
        if line.strip():
            text, error = _decode(line)
            try:
                yield _json_record(text, error)
            except ValueError as broken:
                yield Record(error=error or f"broken JSON: {broken}")


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


def _csv(stream: io.BufferedReader, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_FIELD)  # the default refuses prompts over 128 KiB; process-wide
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True, delimiter=delimiter)
    try:
        header = next((fields for fields in rows if fields), [])
    except csv.Error as error:
        raise _UnusableFile(f"its header is broken: {error}") from error
    try:
        "".join(header).encode()
    except UnicodeEncodeError as error:
        raise _UnusableFile("its header is not UTF-8") from error
    _check_unique(header)
    while True:
        first = rows.line_num + 1
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if rows.line_num > first:
                raise _UnusableFile(
                    f"the record that begins on line {first} goes on to line {rows.line_num} and is broken "
                    f"({error}): close its quote, and double the quotes that belong to its text"
                ) from error
            yield Record(error=f"broken CSV: {error}")
            continue
        if fields:
            yield _csv_record(header, fields)


def _csv_record(header: list[str], fields: list[str]) -> Record:
    error = None
    if len(fields) != len(header):
        error = f"broken CSV: the row has {len(fields)} fields, the header {len(header)}"
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        fields = [value.encode(errors="surrogateescape").decode(errors="replace") for value in fields]
        error = "invalid UTF-8 in the row"
    return Record(dict(zip(header, fields, strict=False)), error)


def _parquet(file: InputFile) -> Iterator[Record]:
    with _parquet_file(file) as parquet:
        _check_unique(parquet.schema_arrow.names)
        for batch in parquet.iter_batches(batch_size=1024):
            names = batch.schema.names
            for values in zip(*batch.columns, strict=True):
                yield Record(
                    {
                        name: value if value.is_valid else None
                        for name, value in zip(names, values, strict=True)
                    }
                )


@contextmanager
def _parquet_file(file: InputFile) -> Iterator[pq.ParquetFile]:
    with ExitStack() as stack:
        source: Any = file.local_path
        if file.compressed or (file.remote and "::" in file.path):
            # Parquet is read from its end, what is packed from its start: unpack it to disk first.
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(_stream(file)), source)
        elif file.remote:
            source = stack.enter_context(file.open())
        yield stack.enter_context(pq.ParquetFile(source))


def _check_unique(names: list[str]) -> None:
    name, count = max(Counter(names).items(), key=itemgetter(1), default=("", 0))
    if count > 1:
        raise _UnusableFile(f"it has more than one column {name!r}")
