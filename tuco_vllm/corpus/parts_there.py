"""Which parts lie in an output: the job's own, whole or torn, replaced jobs', and foreign ones."""

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch

from tuco_vllm.corpus.part import proof_of
from tuco_vllm.corpus.plan import Plan
from tuco_vllm.corpus.unit import Unit, UnitDone
from tuco_vllm.errors import InputError
from tuco_vllm.records import PART_GLOB, SUCCESS
from tuco_vllm.store import Store

_PART = re.compile(r"part-(\d{8,})-([0-9a-f]+)\.parquet")
"""``records.part_name``, read."""

_OLD_PART = re.compile(r"part-\d{5,}\.parquet")
"""As earlier versions named theirs."""

_READERS = 16


@dataclass
class PartsThere:
    """Names of a listing, sorted."""

    parts: dict[int, tuple[str, int]] = field(default_factory=dict)
    """The job's: unit -> name and size."""
    stale: list[str] = field(default_factory=list)
    """Those of jobs that were replaced."""


def part_count(units: int) -> int:
    """How many parts so many units become: a corpus without rows becomes an empty one, with its schema."""
    return max(1, units)


def parts_there(store: Store, job: str, units: int, replaced: AbstractSet[str]) -> PartsThere:
    """The parts of ``job``, which has so many units. Raises InputError for a part of another."""
    there = PartsThere()
    for name, size in store.list().items():
        part = _PART.fullmatch(name)
        if part and part[2] == job and int(part[1]) < part_count(units):
            there.parts[int(part[1])] = name, size
        elif part and part[2] in replaced:
            there.stale.append(name)
        elif fnmatch(name, PART_GLOB):
            raise InputError(f"{store.where}/{name} is no part of this job: move it away")
    return there


def runs_own(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are named as a run names its parts, in this version or an earlier one."""
    return [name for name in names if _PART.fullmatch(name) or _OLD_PART.fullmatch(name)]


def foreign(names: Iterable[str], replaced: AbstractSet[str], *, has_job: bool) -> str | None:
    """The first of ``names`` that no run wrote, if any; where there is no job, none wrote any result."""
    for name in names:
        part = _PART.fullmatch(name)
        if has_job or (part and part[2] in replaced):
            if fnmatch(name, PART_GLOB) and not runs_own([name]):
                return name
        elif name == SUCCESS or name.startswith("part-"):
            return name
    return None


def examined(
    store: Store, job: str, plan: Plan, there: PartsThere, logged: Mapping[int, UnitDone]
) -> tuple[dict[int, UnitDone], dict[int, UnitDone], list[str]]:
    """The units whose parts have the size that was ``logged``, those that prove it by their footer, and the
    names of the parts that do not."""
    known = {
        unit: logged[unit]
        for unit, (_, size) in there.parts.items()
        if unit in logged and logged[unit].size == size
    }
    doubtful = [unit for unit in there.parts if unit not in known]
    with ThreadPoolExecutor(_READERS) as pool:
        proofs = [*pool.map(lambda unit: _proof(store, job, plan, unit, *there.parts[unit]), doubtful)]
    proved = {proof.unit: proof for proof in proofs if proof is not None}
    return known, proved, [there.parts[unit][0] for unit in doubtful if unit not in proved]


def _proof(store: Store, job: str, plan: Plan, number: int, name: str, size: int) -> UnitDone | None:
    unit = plan.unit(number) if len(plan) else Unit(0, 0, 0, 0, 0, 0)
    try:
        with store.open(name, size) as file:
            return proof_of(file, size, unit, job)
    except FileNotFoundError:
        return None
