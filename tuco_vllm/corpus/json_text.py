"""JSON: one text -> its value, and a file that holds one array -> the texts of its elements.

An array is cut, not parsed: strings, brackets and commas are enough to tell where an element ends, so memory
is bounded by the largest element, whatever the size of the array, and an element goes the same way as a line
of JSONL. A streaming parser (ijson) would bring other numbers, other limits and an end at the first element
that is not UTF-8.
"""

import io
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tuco_vllm.corpus.content import UnusableContent

_DEEPEST = 500
"""So many levels may JSON nest. Python's own limit is higher, but it counts the callers too: the survey and
the reading would not always agree on which rows are good, nor reading and writing."""

_READ = 1 << 20

_TOKEN = re.compile(rb'[][{},]|"[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
"""What says where an element ends; the group is empty of a string whose end has not been read."""


def parse_json(text: str) -> Any:
    """The value of a JSON text; of a key that is there twice, the last one counts.

    Raises ValueError for one that is broken (then json.JSONDecodeError) or nests too deep.
    """
    too_deep = f"it nests more than {_DEEPEST} levels deep"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    # Every level has two brackets: most texts are too short to look at.
    if len(text) > 2 * _DEEPEST and text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise ValueError(too_deep)
    return value


def array_elements(stream: io.BufferedReader, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """The text of each element of the array that the stream holds, be it JSON or not, and its end.

    That is the place after its comma, of the last element that of the bracket that closes the array; an
    ``offset`` which is such a place begins with the next element. Raises UnusableContent where the array
    does not end, or where it is not all that the stream holds.
    """
    text, place, begin, seen, depth, is_empty = b"", offset, 0, 0, 0, True
    if offset:
        stream.seek(offset)
        depth = 1
    while True:
        for token in _TOKEN.finditer(text, seen):
            kind = token[0][:1]
            if kind == b'"':
                if not token[1]:
                    break
            elif kind in b"[{":
                depth += 1
                if depth == 1:
                    begin = token.end()
            else:
                if depth == 1:
                    element = text[begin : token.start()]
                    if kind == b"," or not is_empty or element.strip():
                        yield element, place + (token.end() if kind == b"," else token.start())
                    begin, is_empty = token.end(), False
                depth -= kind != b","
                if depth == 0:
                    _check_end(text[token.start() :], stream)
                    return
            seen = token.end()
        more = stream.read(max(_READ, len(text)))  # twice as much each time: a long element is not read often
        if not more:
            raise UnusableContent("its array has no end")
        text, place, begin, seen = text[begin:] + more, place + begin, 0, seen - begin


def _check_end(text: bytes, stream: io.BufferedReader) -> None:
    if not text.startswith(b"]"):
        raise UnusableContent("its array ends with }")
    text = text.removeprefix(b"]")
    while not text.strip():
        if not (text := stream.read(_READ)):
            return
    raise UnusableContent("something follows the end of its array")


def _depth(value: Any) -> int:
    depth = -1
    level: list[Any] = [[value]]
    while level:
        depth += 1
        items = chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level)
        level = [item for item in items if isinstance(item, (dict, list))]
    return depth
