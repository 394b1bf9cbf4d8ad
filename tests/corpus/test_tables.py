import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tuco_vllm.analysis.database import fill
from tuco_vllm.analysis.summary import summarise
from tuco_vllm.analysis.tables import print_status, print_summary
from tuco_vllm.errors import InputError
from tuco_vllm.records import STATE, output_schema
from tuco_vllm.store import store_at


def at(directory):
    return store_at(str(directory))


def write(path, scores, errors=()):
    rows = [{"id": "s", "prompt_tokens": 3, "tuco": score} for score in scores]
    rows += [{"id": "e", "error": error} for error in errors]
    pq.write_table(pa.Table.from_pylist(rows, schema=output_schema()), path)


def write_run(directory, run):
    (directory / STATE).mkdir()
    (directory / STATE / "run.json").write_text(json.dumps(run))


def printed(directory, width):
    out = io.StringIO()
    print_summary(at(directory), Console(file=out, width=width))
    return out.getvalue()


def test_quantiles_are_those_of_all_parts_together(tmp_path):
    scores = np.random.default_rng(0).random(2000)
    write(tmp_path / "part-00000.parquet", scores[:700])
    write(tmp_path / "part-00001.parquet", scores[700:])
    summary = summarise(at(tmp_path))
    expected = np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1], method="inverted_cdf")
    assert list(summary.tuco) == ["min", "5%", "25%", "50%", "75%", "95%", "max"]
    assert list(summary.tuco.values()) == pytest.approx(expected, abs=1e-6)
    assert (summary.rows, summary.errors, summary.prompt_tokens) == (2000, 0, 6000)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.5])
def test_one_score_is_all_its_quantiles(tmp_path, score):
    write(tmp_path / "part-00000.parquet", [score])
    assert set(summarise(at(tmp_path)).tuco.values()) == {score}


def test_errors_are_grouped_whatever_their_numbers(tmp_path):
    errors = ["prompt has 7 tokens, the limit is 5", "prompt has 99 tokens, the limit is 5", "[red]empty"]
    write(tmp_path / "part-00000.parquet", [], errors)
    summary = summarise(at(tmp_path))
    assert summary.reasons == {"prompt has N tokens, the limit is N": 2, "[red]empty": 1}
    assert (summary.errors, summary.tuco) == (3, {})
    table = printed(tmp_path, 100)
    assert "2 x" in table
    assert "[red]empty" in table


def test_a_run_without_parts_has_an_empty_summary(tmp_path):
    assert summarise(at(tmp_path)).rows == 0


@pytest.mark.parametrize("width", [80, 120])
def test_what_strangers_wrote_leaves_the_table_whole(tmp_path, width):
    long = "the messages are not JSON: " + "/a/path/without/a/blank" * 20
    write(
        tmp_path / "part-00000.parquet",
        [0.5],
        [long, "a " * 500, "two\nlines and \x1b[31m colours", "é" * 300],
    )
    examples = [["[bold]id\n", 5], ["id" * 200, 2]]
    write_run(tmp_path, {"duplicate_ids": {"ids": 1234, "rows": 5678, "examples": examples}})
    table = printed(tmp_path, width)
    lines = table.splitlines()
    top = next(n for n, line in enumerate(lines) if line.startswith("┌"))
    assert {len(line) for line in lines[top:]} == {len(lines[top])}
    assert len(lines[top]) <= width
    assert len(lines) - top < 40
    assert "two lines and [Nm colours" in table
    assert "[bold]id " in table
    assert "\x1b" not in table
    assert "1,234 in 5,678 rows" in table


ENGINES = [
    {
        "name": "engine 0",
        "node": "a",
        "state": "ready",
        "starts": 1,
        "rows": 1200,
        "prompt_tokens": 36000,
        "busy_seconds": 3.2,
        "utilisation": 0.931,
    },
    {"name": "engine 1", "node": "b", "state": "starting", "starts": 3, "rows": 7, "busy_seconds": 0.0},
    {"state": "gone"},
]


def rows_of(table):
    """Label -> value of a printed table's rows."""
    cells = [line.strip("│").split("│") for line in table.splitlines() if line.startswith("│")]
    return {label.strip(): value.strip() for label, value in cells}


def test_engines_have_rows_where_there_are_several(tmp_path):
    write_run(tmp_path, {"engines": ENGINES, "counts": {"quarantined": 3}})
    rows = rows_of(printed(tmp_path, 80))
    assert rows["engine 0 on a"] == "1,200 rows, 11,250 tokens/s, 93% busy"
    assert rows["engine 1 on b"] == "7 rows, 3 starts"
    assert rows["engine 2"] == "0 rows"
    assert rows["quarantined rows"] == "3"


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"engines": None, "duplicate_ids": None, "counts": None, "timings": None},
        {"engines": ENGINES[:1], "duplicate_ids": {"ids": 0, "rows": 0, "examples": []}},
        {"counts": {"quarantined": 0}},
    ],
)
def test_there_is_no_row_for_what_did_not_happen(tmp_path, run):
    write_run(tmp_path, run)
    assert list(rows_of(printed(tmp_path, 80))) == ["rows", "errors", "prompt tokens"]


def test_the_status_of_a_running_job_counts_its_engines(tmp_path, capsys):
    counts = {"rows": 50, "rows_committed": 40, "rows_total": 200, "errors": 2}
    write_run(
        tmp_path, {"engines": [*ENGINES, ENGINES[0]], "counts": counts, "timings": {"rows_per_second": 10}}
    )
    print_status(at(tmp_path), "process 1")
    first, second = capsys.readouterr().out.splitlines()
    assert "running (process 1), 0:00:15 left: 50/200 rows" in first
    assert second == "engines: 2 of 4 ready (1 gone, 1 starting)"
    print_status(at(tmp_path), None)
    stopped = capsys.readouterr().out
    assert "engines:" not in stopped
    assert "40/200 rows" in stopped, "rows that are in no part will be scored again"


def test_while_engines_start_nothing_of_the_last_run_is_taken_for_this_one(tmp_path, capsys):
    counts = {"rows": 50, "rows_committed": 40, "rows_total": 200}
    write_run(
        tmp_path, {"state": "failed", "engines": ENGINES, "counts": counts, "timings": {"rows_per_second": 9}}
    )
    print_status(at(tmp_path), "process 1")
    [line] = capsys.readouterr().out.splitlines()
    assert "running (process 1), its engines are starting: 40/200 rows" in line


def test_an_older_run_has_a_status(tmp_path, capsys):
    write_run(tmp_path, {})
    write(tmp_path / "part-00000.parquet", [0.5])
    print_status(at(tmp_path), "process 1")
    assert "0/0 rows" in capsys.readouterr().out


def test_the_status_of_a_job_whose_engines_have_not_started(tmp_path, capsys):
    print_status(at(tmp_path), "process 1")
    assert capsys.readouterr().out == f"{tmp_path}: running (process 1): nothing is scored yet\n"


def test_the_status_of_an_earlier_versions_half_done_run_names_what_helps(tmp_path, capsys):
    write_run(tmp_path, {"counts": {"rows_committed": 40, "rows_total": 200}})
    (tmp_path / "_tuco/job.json").write_text('{"schema_version": "2"}')
    print_status(at(tmp_path), None)
    said = capsys.readouterr().out
    assert "stopped before its end; it is an earlier version's: start anew with --overwrite: 40/200" in said


@pytest.mark.parametrize(
    ("engine", "scores", "mend"),
    [
        (
            {"dtype": "bfloat16", "row_dtype": "bfloat16"},
            [0.001, 0.03, 0.9],
            "--row-dtype auto, where",
        ),
        ({"dtype": "bfloat16", "row_dtype": "float32"}, [0.001, 0.005, 0.9], "--dtype float32 makes"),
        ({"dtype": "bfloat16"}, [0.03], "--row-dtype auto"),  # a run of before there were other rows
        ({"dtype": "bfloat16", "row_dtype": "bfloat16"}, [0.001, 0.05, 0.9], None),
        ({"dtype": "bfloat16", "row_dtype": "float32"}, [0.01], None),
        ({"dtype": "float32", "row_dtype": "float32"}, [0.0], None),
        ({"dtype": "bfloat16", "row_dtype": "float32"}, [], None),
        ({}, [0.0], None),
    ],
)
def test_scores_of_the_roundings_size_are_called_so(tmp_path, engine, scores, mend):
    write(tmp_path / "part-00000.parquet", scores)
    write_run(tmp_path, {"engine": engine})
    table = " ".join(printed(tmp_path, 100).split())
    assert ("tuco doctor measures it for this pair" in table) == (mend is not None)
    assert mend is None or mend in table


def test_quantiles_of_more_scores_than_are_held_are_a_sketchs_and_called_so(tmp_path, monkeypatch):
    scores = np.random.default_rng(0).random(5000)
    write(tmp_path / "part-00000.parquet", scores, ["empty"])
    kept = []

    def filled(database, table, *arguments):
        fill(database, table, *arguments)
        kept.append(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    monkeypatch.setattr("tuco_vllm.analysis.summary.fill", filled)
    exact, summary = (summarise(at(tmp_path), exact_rows=rows) for rows in (5001, 5000))
    assert kept == [5001, 1], "of very many scores none is kept"
    assert exact.exact
    assert not summary.exact
    assert (summary.rows, summary.errors, summary.responses) == (5001, 1, 0)
    assert summary.tuco["50%"] == pytest.approx(np.median(scores), abs=0.02)
    assert (summary.tuco["min"], summary.tuco["max"]) == (scores.min(), scores.max())
    monkeypatch.setattr("tuco_vllm.analysis.tables.summarise", lambda _: summary)
    assert "t-digest" in printed(tmp_path, 80)


def test_a_part_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "part-00000.parquet", [0.5])
    (tmp_path / "part-00001.parquet").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"part-00001\.parquet"):
        summarise(at(tmp_path))
