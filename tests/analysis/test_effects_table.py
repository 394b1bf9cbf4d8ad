"""From a sweep's directory to its tables and effects.csv."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tuco_vllm.analysis.effects_read import read_answers
from tuco_vllm.analysis.effects_table import effects_csv, find_effects, print_effects, save_effects
from tuco_vllm.errors import InputError
from tuco_vllm.store import store_at
from tuco_vllm.sweep.answers import MAIN, SCHEMA, UTILITY, answer_row
from tuco_vllm.sweep.directory import ANSWERS, SWEEP
from tuco_vllm.sweep.grid import Point
from tuco_vllm.sweep.question import Question

ALPHAS = (0.75, 1.0, 1.25)
HOSTILE = "<script>\x1b[31m[red]'\"$\n=cmd()"


def rows_of(shares, n=100, *, dataset=MAIN, task="t", group=None, first=0, layers=(0, 1), logp=-1.0):
    """Answers of two options, right with the share of their alpha."""
    draw = np.random.default_rng(len(task) + first)
    rows = []
    for number in range(n):
        question = Question(f"id{number}", task, group, "p", ("a", "b"), 0)
        for alpha, share in zip(ALPHAS, shares, strict=True):
            logps = [logp, logp - 1] if draw.random() < share else [logp - 1, logp]
            point = Point(alpha, *layers)
            rows.append(
                answer_row(first + number, dataset, question, point, digest=f"d{number}", logps=logps)
            )
    return rows


def write(tmp_path, *parts, sweep=None):
    for number, rows in enumerate(parts):
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / f"answers-{number:05d}-ab.parquet")
    about = {"sweep": "ab", "chunks": len(parts), **(sweep or {})}
    (tmp_path / SWEEP).write_text(json.dumps(about))
    return store_at(str(tmp_path))


def printed(store, width=160):
    console = Console(width=width, file=io.StringIO())
    print_effects(find_effects(store), console)
    return console.file.getvalue()


def lines_of(found):
    return list(csv.DictReader(io.StringIO(effects_csv(found).decode())))


def test_effect_and_cost_stand_side_by_side(tmp_path):
    store = write(
        tmp_path,
        rows_of([0.3, 0.5, 0.9], 200, task="wanted"),
        rows_of([0.9, 0.8, 0.4], 100, dataset=UTILITY, task="kept", first=200),
    )
    text = printed(store)
    [at_125] = [line for line in text.splitlines() if line.startswith("│ 1.25")]
    assert at_125.count("[") == 2
    assert "+0.3" in at_125
    assert "-0.3" in at_125
    assert "main: 200 questions of 1 tasks; utility: 100 questions of 1 tasks" in text
    assert "task wanted" in text
    assert "task kept" not in text
    higher = [line for line in text.splitlines() if "higher" in line]
    assert all("1.25 (5/5)" in line for line in higher)
    assert len(higher) == 2
    lines = lines_of(find_effects(store))
    assert {line["dataset"] for line in lines} == {"main", "utility"}
    assert [line for line in lines if line["dataset"] == "utility" and line["what"] == "chosen-min"]


def test_nulls_read_as_nulls(tmp_path):
    text = printed(write(tmp_path, rows_of([0.5, 0.5, 0.5], 200)))
    assert "higher" not in text
    assert "none" in text
    same = tmp_path / "same"
    same.mkdir()
    assert "none: 1 is chosen" in printed(write(same, rows_of([1.0, 1.0, 1.0])))


def test_an_answer_that_has_no_probability_is_said(tmp_path):
    text = printed(write(tmp_path, rows_of([0.5] * 3, logp=-15.0)))
    assert "would have said something else" in text
    good = tmp_path / "good"
    good.mkdir()
    assert "something else" not in printed(write(good, rows_of([0.5] * 3)))


def test_ties_are_said(tmp_path):
    rows = rows_of([0.5] * 3)
    rows[0] |= {"option_logps": [-1.0, -1.0]}
    store = write(tmp_path, rows)
    assert "1 answers are the first of equally probable ones" in " ".join(printed(store).split())
    assert (
        sum(int(line["tied"] or 0) for line in lines_of(find_effects(store)) if line["scope"] == "rows") == 1
    )


def test_a_question_with_an_error_at_one_alpha_is_left_out_at_all(tmp_path):
    rows = rows_of([0.5] * 3, 50)
    error = {"error": "it failed 17 times", "correct": None, "mass": None, "option_logps": None}
    rows[4] |= error
    store = write(tmp_path, rows)
    [cell] = read_answers(store).cells
    assert (len(cell.tasks), cell.left_out) == (49, 1)
    text = printed(store)
    assert "150 answers, 1 errors" in text
    assert "1 x it failed N times" in text
    assert "49 questions of 1 tasks, 1 left out" in text


def test_a_sweep_without_a_good_row_has_no_table_but_says_why(tmp_path):
    rows = rows_of([0.5] * 3, 5)
    for row in rows:
        row |= {"error": "bad", "correct": None, "mass": None, "option_logps": None, "task": None}
    store = write(tmp_path, rows)
    text = printed(store)
    assert "15 x bad" in text
    assert "there is nothing to compare" in " ".join(text.split())
    save_effects(store, find_effects(store))
    assert lines_of(find_effects(store)) == []


def test_every_range_has_its_own_tables(tmp_path):
    low, high = rows_of([0.9, 0.5, 0.1], layers=(0, 0)), rows_of([0.1, 0.5, 0.9], layers=(1, 1))
    store = write(tmp_path, [row for pair in zip(low, high, strict=True) for row in pair])
    found = find_effects(store)
    assert [(cell.first_layer, cell.last_layer) for cell, _, _ in found.cells] == [(0, 0), (1, 1)]
    best = {
        line["first_layer"]: line["alpha"]
        for line in lines_of(found)
        if line["what"] == "chosen-max" and line["scope"] == "rows"
    }
    assert best == {"0": "0.75:5", "1": "1.25:5"}


def test_names_of_strangers_reach_no_terminal_and_break_no_csv(tmp_path):
    store = write(tmp_path, rows_of([0.5] * 3, task=HOSTILE, group=HOSTILE), rows_of([0.5] * 3, first=100))
    text = printed(store)
    assert "\x1b" not in text
    assert "[red]" in text
    assert HOSTILE in {line["name"] for line in lines_of(find_effects(store))}


def test_figures_are_written_once(tmp_path):
    store = write(tmp_path, rows_of([0.5] * 3))
    save_effects(store, find_effects(store))
    written = (tmp_path / "effects.csv").stat().st_mtime_ns
    save_effects(store, find_effects(store))
    assert (tmp_path / "effects.csv").stat().st_mtime_ns == written


def test_parts_of_another_sweep_are_nobodys(tmp_path):
    store = write(tmp_path, rows_of([0.5] * 3), sweep={"chunks": 3})
    other = pa.Table.from_pylist(rows_of([0.5] * 3, first=900), SCHEMA)
    pq.write_table(other, tmp_path / "answers-00001-cd.parquet")
    answers = read_answers(store)
    assert (answers.rows, answers.chunks_missing) == (300, 2)
    assert "unfinished: 2 chunks" in printed(store)


def test_what_is_no_sweep_is_refused(tmp_path):
    store = store_at(str(tmp_path))
    with pytest.raises(InputError, match="holds no answers"):
        read_answers(store)
    pq.write_table(pa.table({"row": [1]}), tmp_path / "answers-00000-ab.parquet")
    with pytest.raises(InputError, match="no part of a sweep"):
        read_answers(store)
    (tmp_path / "answers-00000-ab.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="no part of a sweep"):
        read_answers(store)
    (tmp_path / SWEEP).write_text("{")
    with pytest.raises(InputError, match=r"sweep\.json"):
        read_answers(store)
    without_1 = [row for row in rows_of([0.5] * 3) if row["alpha"] != 1.0]
    with pytest.raises(InputError, match="no answers at alpha 1"):
        read_answers(write(tmp_path, without_1))


def test_both_sides_of_the_parquet_name_it_alike():
    from tuco_vllm.analysis import effects_read, effects_table
    from tuco_vllm.sweep import directory

    assert (effects_read.SWEEP, effects_read.ANSWERS) == (SWEEP, ANSWERS)
    assert effects_read.MAIN == MAIN
    assert effects_table.EFFECTS == directory.EFFECTS
