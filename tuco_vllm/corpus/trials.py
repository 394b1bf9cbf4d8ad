"""Units on which processes have died: how often, and which of their rows is to blame."""

from dataclasses import dataclass, replace

_TRUSTED = 2
"""So often a unit is done as a whole; if the process died each time, a row at a time."""

_ATTEMPTS = 12
"""So often may processes die on a unit, besides alone with one of its rows."""

_KILLERS = 8
"""With more rows of a unit than these that a process died alone with, the rows are not to blame."""


@dataclass(frozen=True)
class Trial:
    """How often a unit was begun, and which of its rows processes died alone with, by their place in it.

    ``attempts`` leaves out those that ended alone with a row: their cause is known. ``suspects`` are rows of
    one such death, which may have had another cause; ``poison`` are those of two, ``unread`` those of them
    that a process died of then or later before it had read them.
    """

    attempts: int = 0
    suspects: frozenset[int] = frozenset()
    poison: frozenset[int] = frozenset()
    unread: frozenset[int] = frozenset()

    def again(self, alone_with: int | None, *, read: bool = True) -> "Trial":
        """After a death, alone with that row, which had been ``read`` or not, or with none known."""
        if alone_with is None or alone_with in self.unread:  # it was not touched: something else kills
            return replace(self, attempts=self.attempts + 1)
        if alone_with in self.suspects | self.poison:
            unread = self.unread if read else self.unread | {alone_with}
            return Trial(self.attempts, self.suspects - {alone_with}, self.poison | {alone_with}, unread)
        return replace(self, suspects=self.suspects | {alone_with})

    @property
    def is_close(self) -> bool:
        """Whether the next attempt takes a row at a time."""
        return self.attempts >= _TRUSTED

    @property
    def is_over(self) -> bool:
        """Whether there is no use in another attempt."""
        return self.attempts >= _ATTEMPTS or len(self.suspects | self.poison) > _KILLERS

    @property
    def deaths(self) -> int:
        """All of them."""
        return self.attempts + len(self.suspects) + 2 * len(self.poison)


class Watch:
    """Which row of a unit is alone in its process: what must outlive that process. An actor."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int | None, bool]] = {}

    def at(self, unit: int, row: int | None, read: bool) -> None:
        """From here on a death is this row's fault, or no row's; whether it has been read."""
        self._rows[unit] = row, read

    def last(self, unit: int) -> tuple[int | None, bool]:
        """The last row of the unit that was at hand, and whether it had been read; asked once."""
        return self._rows.pop(unit, (None, False))
