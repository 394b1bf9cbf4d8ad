"""What is to be done: a new job's units, those that more files add to a job, and about how much that is."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pyarrow.compute as pc

from tuco_vllm.corpus.chunks import UnitReader
from tuco_vllm.corpus.cluster import without_stderr
from tuco_vllm.corpus.columns import Survey
from tuco_vllm.corpus.inputs import InputFile, input_names
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.plan import FileSurvey, Plan, SurveyFile, surveyed
from tuco_vllm.corpus.unit import UnitDone
from tuco_vllm.errors import InputError

_BYTES_A_TOKEN = 4
"""Of English; of other scripts fewer. It tells thousands of tokens from millions, and needs no more."""

_BYTES_A_ROW = 420
"""So many bytes of input count as a row when a part is measured: 10,000 rows are a million tokens, half a
minute of a large GPU. It is what a kill may cost each engine, twice."""

_LEAST_ROWS = 256
_UNITS_AN_ENGINE = 8
"""Of a small corpus each engine has so many units, of no fewer rows than that: engines share it evenly, and
an interruption costs a part of it only."""

_WORTH_PROCESSES = 256 << 20
"""Bytes: a survey parses some 100 MB a second and core, and a process takes a second to start."""


def planned(files: Sequence[InputFile], job: ScoreJob, engines: int) -> tuple[Survey, Plan]:
    """What the files hold, and the units of a new job. InputError for what cannot be read or scored."""
    rows = job.rows_per_file
    mark_rows = -(-rows // -(-rows // _LEAST_ROWS))  # so that a unit can have just these rows
    content, marks = surveyed(files, job.columns, job.limit, mark_rows=mark_rows, each=_in_processes)
    if job.more.relative_reward and not content.responses:
        raise InputError("--relative-reward is of responses, and no row has one: leave it out")
    if job.other_fts:
        content = content.without_name("ft")
    rows = min(rows, max(_LEAST_ROWS, content.rows // (engines * _UNITS_AN_ENGINE)))
    return content, Plan.of(marks, rows, job.rows_per_file * _BYTES_A_ROW, 1 + len(job.other_fts))


def arranged(
    files: Sequence[InputFile], known: dict[str, Any] | None, *, extend: bool
) -> tuple[list[InputFile], list[InputFile]]:
    """The files in the order and by the names that the job which is there gave them, and those new to it.

    ``known``: the job, as job.json has it. Without one, and where files of it are missing, they stay as they
    are; with ``extend`` that is an InputError.
    """
    paths = [path for path, *_ in known["inputs"]] if known else []
    given, own = {file.path: file for file in files}, {*paths}
    new = [path for path in given if path not in own]
    if extend and (lost := [path for path in paths if path not in given]):
        raise InputError(f"--extend needs the job's own inputs too, and {lost[0]} is not among those given")
    if not known or not given.keys() >= own or not (new or known.get("first_inputs")):
        return [*files], []
    first = known.get("first_inputs") or len(paths)
    names = input_names(paths[:first], [*paths[first:], *new])
    named = [replace(given[path], name=name) for path, name in zip([*paths, *new], names, strict=True)]
    return named[: len(paths)], named[len(paths) :]


def extended(
    files: Sequence[InputFile],
    new: Sequence[InputFile],
    job: ScoreJob,
    content: Survey,
    plan: Plan,
    engines: int,
) -> Plan:
    """The units of a job over ``files`` and, behind them, of ``new`` ones with the same columns."""
    if job.limit is not None:
        raise InputError("--limit is of the whole corpus: a limited job cannot be extended")
    added, units = planned(new, job, engines)
    columns = {extra.name: extra for extra in content.extras}
    for extra in added.extras:
        own = columns.get(extra.name)
        if own != extra and not (own and own.as_json):
            has = f"as {columns[extra.name].type}" if extra.name in columns else "not at all"
            raise InputError(
                f"column {extra.source!r} of the new files is of type {extra.type}, and the job has it "
                f"{has}: score them into another --out"
            )
    if added.responses and not content.responses:
        raise InputError("the new files have responses and the job has none: score them into another --out")
    return plan.followed_by(units, files=len(files)) if units.rows else plan


def _in_processes(survey: SurveyFile, files: Sequence[InputFile]) -> Iterator[FileSurvey]:
    """``map`` over files, by as many processes as there are cores where that is worth their start."""
    known = sum(max(file.size, 0) for file in files if file.format != "parquet")
    processes = min(len(files), len(os.sched_getaffinity(0)))
    if processes < 2 or known < _WORTH_PROCESSES:
        yield from map(survey, files)
        return
    with ExitStack() as stack:
        with without_stderr():  # they would say what Ctrl-C did to them; errors come as exceptions
            pool = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn")))
            surveys = pool.map(survey, files)
        yield from surveys


def tokens_left(
    files: Sequence[InputFile], job: ScoreJob, content: Survey, plan: Plan, done: dict[int, UnitDone]
) -> int:
    """About how many tokens the rows that are left have: as those that the first of them begin with."""
    units = (plan.unit(number) for number in range(len(plan)) if number not in done)
    unit = next((unit for unit in units if unit.rows), None)
    if unit is None:
        return 0
    first = next(UnitReader(tuple(files), job.columns, content.extras).chunks(unit))
    prompts_chats_responses = first.columns[1:4]
    size = sum(pc.sum(pc.binary_length(texts)).as_py() or 0 for texts in prompts_chats_responses)
    left = plan.rows - sum(each.rows for each in done.values())
    return round(size / first.num_rows * left / _BYTES_A_TOKEN)
