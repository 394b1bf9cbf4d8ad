"""Units: each row in one of them, whatever the files and wherever their marks are."""

import gzip
import json
import pickle
import random
from array import array
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.corpus import plan as plan_module
from tuco_vllm.corpus.chunks import UnitReader
from tuco_vllm.corpus.columns import Columns, FoundColumns
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.plan import FileSurvey, Plan, survey_file, surveyed
from tuco_vllm.corpus.unit import Unit
from tuco_vllm.errors import InputError

MANY = 1 << 40


@pytest.fixture
def mixed(tmp_path):
    """A file of every format, 40 to 47 rows of some bytes to some hundred each, and empty ones between."""
    random.seed(7)
    folder = tmp_path / "in"
    folder.mkdir()

    def rows(count):
        return [
            {"prompt": f"{n} " + random.choice(["x", 'y,"\n\r'] * 9) * random.randrange(60)}
            for n in range(count)
        ]

    (folder / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows(40))))
    (folder / "b.txt").write_text("".join(f"line {n}\n" for n in range(41)))
    (folder / "c.jsonl").write_text("")
    quoted = ['"' + row["prompt"].replace('"', '""') + '"' for row in rows(42)]
    (folder / "d.csv").write_text("\n\n".join(["prompt", *quoted]), newline="")
    (folder / "e.json").write_text(json.dumps(rows(43), indent=1))
    (folder / "f.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows(44))).encode()))
    pq.write_table(pa.Table.from_pylist(rows(45)), folder / "g.parquet", row_group_size=10)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), folder / "h.parquet")
    (folder / "i.csv.gz").write_bytes(gzip.compress("\r\n".join(["prompt", *quoted]).encode()))
    return find_inputs([str(folder)], out=tmp_path / "out")


ROWS = [40, 41, 0, 42, 43, 44, 45, 0, 42]


def columns_of(tables):
    return {name: [v for table in tables for v in table[name].to_pylist()] for name in tables[0].column_names}


@pytest.mark.parametrize("unit_rows", [1, 7, 20, 1000])
@pytest.mark.parametrize("unit_bytes", [300, 2000, MANY])
@pytest.mark.parametrize("limit", [None, 1, 40, 100, 170, 240, 500])
def test_every_row_is_in_one_unit(mixed, unit_rows, unit_bytes, limit):
    columns = Columns()
    survey, surveys = surveyed(mixed, columns, limit, mark_rows=unit_rows)
    assert survey.rows == (297 if limit is None else min(limit, 297))
    plan = Plan.of(surveys, unit_rows, unit_bytes)
    assert plan.rows == survey.rows == sum(each.rows for each in surveys)
    units = [plan.unit(number) for number in range(len(plan))]
    row = 0
    for number, unit in enumerate(units):
        assert (unit.number, unit.row) == (number, row)
        assert 1 <= unit.rows <= unit_rows
        row += unit.rows
    reader = UnitReader(mixed, columns, survey.extras)
    tables = [table for unit in units for table in reader.chunks(unit)]
    whole = Plan.of(surveyed(mixed, columns, limit)[1], MANY, MANY)
    assert len(whole) <= len([rows for rows in ROWS if rows])
    at_once = [table for n in range(len(whole)) for table in reader.chunks(whole.unit(n))]
    assert columns_of(tables) == columns_of(at_once)
    names = [f"{file.name}:{n}" for file, rows in zip(mixed, ROWS, strict=True) for n in range(rows)]
    assert columns_of(tables)["id"] == names[:limit]
    assert not any(columns_of(tables)["error"])


def test_units_are_as_many_rows_as_was_asked_for(mixed):
    surveys = surveyed(mixed, Columns(), mark_rows=20)[1]
    plan = Plan.of(surveys, 20, MANY)
    rows = [(unit.file, unit.rows) for unit in map(plan.unit, range(len(plan)))]
    assert rows[:6] == [(0, 20), (0, 20), (1, 20), (1, 20), (1, 1), (3, 20)]
    assert [count for file, count in rows if file == 6] == [20, 20, 5]


def test_a_unit_ends_where_it_has_some_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "MARK_BYTES", 100)
    (tmp_path / "x.txt").write_text("a" * 9 + "\n" + ("b" * 49 + "\n") * 4 + ("c" * 299 + "\n") * 2 + "d")
    files = find_inputs([str(tmp_path)], out=tmp_path / "out")
    survey = survey_file(files[0], Columns())
    assert [*zip(survey.records, survey.offsets, strict=True)] == [
        *[(0, 0), (3, 110), (5, 210)],
        *[(6, 510), (7, 810), (8, 811)],
    ]
    plan = Plan.of([survey], MANY, 200)
    assert [plan.unit(n) for n in range(len(plan))] == [
        Unit(0, 0, 0, 0, 5, 0),
        Unit(1, 0, 5, 5, 1, 210),
        Unit(2, 0, 6, 6, 1, 510),
        Unit(3, 0, 7, 7, 1, 810),
    ]


def test_parquet_units_go_by_the_bytes_of_row_groups():
    records, sizes = array("q", [0, 100, 300]), array("q", [0, 1000, 1200])  # 10 bytes a row, then 1
    survey = FileSurvey(250, FoundColumns(frozenset()), False, records, sizes, by_number=True)
    plan = Plan.of([survey], 120, 500)
    assert [(unit.first, unit.rows, unit.offset) for unit in map(plan.unit, range(len(plan)))] == [
        *[(0, 50, 0), (50, 50, 0), (100, 120, 0), (220, 30, 0)]
    ]


def test_a_corpus_without_rows_is_one_unit(tmp_path):
    (tmp_path / "x.csv").write_text("prompt\n")
    files = find_inputs([str(tmp_path)], out=tmp_path / "out")
    survey, surveys = surveyed(files, Columns())
    plan = Plan.of(surveys, 10, 10)
    assert (survey.rows, len(plan), plan.rows) == (0, 1, 0)
    assert plan.unit(0) == Unit(0, 0, 0, 0, 0, 0)
    assert list(UnitReader(files, Columns(), ()).chunks(plan.unit(0))) == []


def test_files_may_be_read_in_any_order_by_other_processes(mixed):
    def each(look, files):
        with ThreadPoolExecutor(3) as threads:
            return [pickle.loads(pickle.dumps(found)) for found in threads.map(look, files)]

    here, elsewhere = surveyed(mixed, Columns()), surveyed(mixed, Columns(), each=each)
    assert here[0] == elsewhere[0]
    assert Plan.of(here[1], 10, 500).table == Plan.of(elsewhere[1], 10, 500).table


def test_the_first_file_decides_what_is_wrong(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "no prompt"}\n')
    (tmp_path / "b.json").write_text("[")
    files = find_inputs([str(tmp_path)], out=tmp_path / "out")
    with pytest.raises(InputError, match=r"no column 'prompt' or 'messages': .*a.jsonl has the columns text"):
        surveyed(files, Columns())
    files.reverse()
    with pytest.raises(InputError, match=r"cannot read .*b.json as jsonl: its array has no end"):
        surveyed(files, Columns())
    (tmp_path / "0.jsonl").write_text('{"prompt": "x"}\n')
    files = find_inputs([str(tmp_path)], out=tmp_path / "out")
    assert surveyed(files, Columns(), limit=1)[0].rows == 1  # no further file is read


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("last", "score", "expected"),
    [("assistant", "auto", True), ("user", "auto", False), ("assistant", "prompt", False)],
)
def test_a_chat_that_ends_with_a_response_is_seen(tmp_path, file_format, last, score, expected):
    chat = [{"role": "user", "content": "q"}, {"role": last, "content": "a"}]
    rows = [{"messages": chat[:1]}, {"messages": chat}]
    if file_format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    elif file_format == "csv":
        cells = (json.dumps(row["messages"]).replace('"', '""') for row in rows)
        (tmp_path / "x.csv").write_text("messages\n" + "".join(f'"{cell}"\n' for cell in cells))
    else:
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = find_inputs([str(tmp_path)], out=tmp_path / "out")
    assert surveyed(files, Columns(score=score))[0].responses is expected


def test_a_million_units_are_no_million_objects():
    marks = array("q", range(0, 100_000_001, 100))
    survey = FileSurvey(10**8, FoundColumns(frozenset()), False, marks, marks, by_number=False)
    plan = Plan.of([survey], 100, MANY)
    written = plan.to_parquet()
    again = Plan.from_parquet(written)
    assert len(again) == 10**6
    assert again.rows == 10**8
    assert again.unit(10**6 - 1) == Unit(10**6 - 1, 0, 10**8 - 100, 10**8 - 100, 100, 10**8 - 100)
    assert len(written) < 10**7
    assert again.table == plan.table
    assert again.table.nbytes < 41 * 10**6


def test_small_files_share_a_unit_and_large_ones_do_not(tmp_path):
    """Up to the rows and bytes of a unit; files without rows are part of one, and read as such."""
    sizes = [3, 0, 4, 25, 2, 2, 0, 9, 1]
    for number, rows in enumerate(sizes):
        (tmp_path / f"{number}.txt").write_text("".join(f"{number} {row}\n" for row in range(rows)))
    files = find_inputs([str(tmp_path)], out=tmp_path / "out")
    content, surveys = surveyed(files, Columns(), mark_rows=10)
    plan = Plan.of(surveys, 10, MANY)
    units = [plan.unit(n) for n in range(len(plan))]
    assert [(unit.file, unit.first, unit.row, unit.rows, unit.more) for unit in units] == [
        (0, 0, 0, 7, (0, 4)),
        (3, 0, 7, 10, ()),
        (3, 10, 17, 10, ()),
        (3, 20, 27, 5, ()),
        (4, 0, 32, 4, (2, 0)),
        (7, 0, 36, 10, (1,)),
    ]
    reader = UnitReader(files, Columns(), content.extras)
    read = [row for unit in units for chunk in reader.chunks(unit) for row in chunk.to_pylist()]
    assert [row["id"] for row in read] == [
        f"{n}.txt:{row}" for n, rows in enumerate(sizes) for row in range(rows)
    ]
    told = []
    again = reader.chunks(units[0], chunk_rows=1, before=told.append, skip={1, 5})
    assert [row["error"] is None for chunk in again for row in chunk.to_pylist()] == [
        n not in (1, 5) for n in range(7)
    ]
    assert told == [*range(7)]
    few = Plan.of(surveys, 10, 16)
    assert few.unit(0).more == (0,), "twelve bytes and sixteen are more"
