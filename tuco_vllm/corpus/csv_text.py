"""CSV: a file -> the fields of its rows.

A broken row that goes over several lines makes the file unusable: a quote that is never closed takes all rows
up to the next quote, or to the end of the file, into its own. Any other costs itself only.
"""

import csv
import io
from collections.abc import Iterator

from tuco_vllm.corpus.content import READ, UnusableContent, check_unique

_LONGEST_FIELD = 1 << 26
"""Characters of a field: what is held in memory of a quote that is never closed."""


def csv_rows(
    stream: io.BufferedReader, delimiter: str, offset: int = 0
) -> Iterator[tuple[list[str], list[str] | csv.Error, int]]:
    """The header, the fields of each row or why it is broken, and where in the stream it ends.

    What is not UTF-8 is in surrogates. An ``offset`` which is such an end begins with the next row; the
    header is read all the same. Raises UnusableContent.
    """
    csv.field_size_limit(_LONGEST_FIELD)  # the default refuses prompts over 128 KiB; process-wide
    lines = _Lines(stream)
    rows = csv.reader(lines, strict=True, delimiter=delimiter)
    header = _header(rows)
    if offset:
        stream.seek(offset)
        lines = _Lines(stream, offset)
        rows = csv.reader(lines, strict=True, delimiter=delimiter)
    while True:
        first = rows.line_num + 1
        try:
            fields: list[str] | csv.Error = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if rows.line_num > first:
                raise UnusableContent(
                    f"the record that begins on line {first} goes on to line {rows.line_num} and is broken "
                    f"({error}): close its quote, and double the quotes that belong to its text"
                ) from error
            fields = error
        if fields:
            yield header, fields, lines.end


def _header(rows: Iterator[list[str]]) -> list[str]:
    try:
        header = next((fields for fields in rows if fields), [])
    except csv.Error as error:
        raise UnusableContent(f"its header is broken: {error}") from error
    try:
        "".join(header).encode()
    except UnicodeEncodeError as error:
        raise UnusableContent("its header is not UTF-8") from error
    check_unique(header)
    return header


class _Lines:
    """A stream's lines, which may end with a line feed, a carriage return or both, as text."""

    def __init__(self, stream: io.BufferedReader, offset: int = 0) -> None:
        self.end = offset
        """Where the last line ends that was taken."""
        self._lines = _split(stream)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        encoding = "utf-8" if self.end else "utf-8-sig"
        self.end += len(line)
        return line.decode(encoding, "surrogateescape")


def _split(stream: io.BufferedReader) -> Iterator[bytes]:
    held = b""
    while piece := stream.readline(max(READ, len(held))):  # a file may be without any line feed
        lines = (held + piece).splitlines(keepends=True)
        held = b"" if piece.endswith(b"\n") else lines.pop()
        yield from lines
    if held:
        yield held
