"""The content of an input file: its bytes decompressed, and whatever is wrong with them in one line.

Of a file that cannot be read at all, or not to its end, it is unknown how many rows it still holds: going on
would lose them silently.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter

import pyarrow as pa

from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.errors import InputError

READ = 1 << 20
"""So many bytes are read at a time."""


class UnusableContent(Exception):
    """Says what is wrong; `reading` adds the file's name."""


@contextmanager
def reading(file: InputFile) -> Iterator[None]:
    """What goes wrong with the file's content becomes an InputError."""
    try:
        yield
    except (OSError, pa.ArrowException, UnusableContent) as error:
        raise InputError(f"cannot read {file.path} as {file.format}: {str(error).strip()}") from error


@contextmanager
def opened(file: InputFile) -> Iterator[io.BufferedReader]:
    """The file's content; pyarrow raises OSError for compressed bytes that end too early."""
    with file.open() as stored:
        try:
            codec = pa.Codec.detect(file.file_name.lower()).name
        except TypeError:  # of an extension that is no codec's
            yield stored
            return
        with pa.input_stream(stored, compression=codec) as content:
            yield io.BufferedReader(content, buffer_size=READ)


def check_unique(names: Sequence[str]) -> None:
    """UnusableContent where two columns have one name."""
    name, count = max(Counter(names).items(), key=itemgetter(1), default=("", 0))
    if count > 1:
        raise UnusableContent(f"it has more than one column {name!r}")
