"""What the driver knows of a worker: its process, what that has in hand, and how its engine is."""

from dataclasses import dataclass, field
from typing import Any

from tuco_vllm.corpus.unit import Unit, UnitDone


@dataclass
class WorkerProcess:
    """One place for an engine, and the process that has it now."""

    number: int
    actor: Any = None
    node: str = ""
    place: int = 0
    ready: bool = False
    deaths: int = 0
    """In a row, while an engine started."""
    started: str = ""
    held: dict[Any, Unit] = field(default_factory=dict)
    """What Ray calls an attempt -> its unit."""
    gone: bool = False
    """Whether its engines do not start any more, and others do."""
    exclusive: bool = False
    """Whether its one unit is one that processes have died on: it gets no other."""
    in_hand: list[UnitDone] = field(default_factory=list)
    """How far its units were when it was last asked."""

    @property
    def state(self) -> str:
        """ "ready"; "isolating" a row that kills, so with one unit only; "starting"; "waiting" for a machine
        that has room for its process; "gone" for good."""
        if self.ready:
            return "isolating" if self.exclusive else "ready"
        if self.gone:
            return "gone"
        return "starting" if self.node else "waiting"
