"""A stored file to seek in: only what is asked for is read, so a Parquet footer without its body."""

import io
from collections.abc import Callable
from typing import Any, BinaryIO

_BUFFER = 1 << 16


def opened(size: int, fetch: Callable[[int, int], bytes]) -> BinaryIO:
    """A file of ``size`` bytes, read by ``fetch`` (start, length)."""
    return io.BufferedReader(_Ranges(size, fetch), _BUFFER)


class _Ranges(io.RawIOBase):
    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._place = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._place)
        if length <= 0:
            return 0
        data = self._fetch(self._place, length)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        return self._place
