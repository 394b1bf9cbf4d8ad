import json
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.corpus import columns as columns_module
from tuco_vllm.corpus import csv_text
from tuco_vllm.corpus.columns import Columns, ExtraColumn, Survey
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.plan import surveyed
from tuco_vllm.errors import InputError


def look(directory, columns=None, limit=None):
    return surveyed(find_inputs([str(directory)], out=directory / "out"), columns or Columns(), limit)[0]


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def types(found):
    return {extra.name: "json" if extra.as_json else extra.type for extra in found.extras}


def nested(levels, item):
    return nested(levels - 1, [item]) if levels else item


def list_type(levels, item):
    return list_type(levels - 1, pa.list_(item)) if levels else item


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, -5], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([2**53, 0.5], pa.float64()),
        ([2**53 + 1, 0.5], "json"),  # a double would change it
        ([2**62], pa.int64()),
        ([2**64], "json"),
        ([True, False], pa.bool_()),
        ([True, 1], "json"),
        (["a", "b"], pa.string()),
        (["a", 1], "json"),
        ([None], pa.string()),
        ([["a"], [], None], pa.list_(pa.string())),
        ([[1], [0.5, None]], pa.list_(pa.float64())),
        ([[[1]], [[2, 3]]], pa.list_(pa.list_(pa.int64()))),
        ([[]], pa.list_(pa.string())),
        ([[1], 1], "json"),
        ([{"a": 1}], "json"),
        ([[{"a": 1}]], "json"),
        ([nested(8, 1), [], nested(8, 2)], list_type(8, pa.int64())),
        ([nested(9, 1)], "json"),
        ([nested(400, 1)], "json"),
    ],
)
def test_json_columns_have_the_narrowest_type_that_keeps_their_values(tmp_path, values, expected):
    write_jsonl(tmp_path / "x.jsonl", *({"prompt": "p", "v": value} for value in values))
    assert types(look(tmp_path)) == {"v": expected}


def test_a_misfit_far_down_still_decides_the_type(tmp_path):
    write_jsonl(
        tmp_path / "x.jsonl", *({"prompt": "p", "v": i} for i in range(5000)), {"prompt": "p", "v": "no"}
    )
    assert types(look(tmp_path)) == {"v": "json"}
    assert types(look(tmp_path, limit=5000)) == {"v": pa.int64()}


def test_csv_and_json_columns_of_one_name_are_reconciled(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,same,other\np,x,1\n")
    write_jsonl(tmp_path / "b.jsonl", {"prompt": "p", "same": "y", "other": 1})
    assert types(look(tmp_path)) == {"same": pa.string(), "other": "json"}


def test_parquet_columns_keep_their_types(tmp_path):
    table = pa.table(
        {
            "prompt": ["p"],
            "when": pa.array([datetime(2020, 1, 1)], pa.timestamp("ns")),
            "price": pa.array([Decimal("1.25")], pa.decimal128(9, 2)),
            "chat": pa.array([[{"role": "x"}]]),
            "word": pa.array(["w"]).dictionary_encode(),
            "small": pa.array([1], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = types(look(tmp_path))
    assert found["word"] == pa.string()
    del found["word"]
    assert found == {name: table.schema.field(name).type for name in ("when", "price", "chat", "small")}


def test_a_corpus_with_a_new_key_in_every_row_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(columns_module, "MOST_COLUMNS", 3)
    rows = [{"prompt": "p", f"k{n}": n} for n in range(6)]
    write_jsonl(tmp_path / "x.jsonl", *rows, {"k9": 9, "id": "i", "prompt": "p", "k1": "text"})
    found = look(tmp_path, Columns(id="id"))
    assert types(found) == {"k0": pa.int64(), "k1": "json", "k2": pa.int64(), "other_columns": "json"}
    assert [extra.source for extra in found.extras] == ["k0", "k1", "k2", None]


def test_a_column_that_has_room_is_known_in_files_that_overflow(tmp_path, monkeypatch):
    monkeypatch.setattr(columns_module, "MOST_COLUMNS", 2)
    write_jsonl(tmp_path / "a.jsonl", {"prompt": "p", "k0": 0, "k1": 1})
    write_jsonl(tmp_path / "b.jsonl", {"prompt": "p", "n0": 0, "n1": 0, "n2": 0, "k1": 0.5})
    pq.write_table(pa.table({"prompt": ["p"], "m0": [0], "m1": [1], "k0": ["text"]}), tmp_path / "c.parquet")
    assert types(look(tmp_path)) == {"k0": "json", "k1": pa.float64(), "other_columns": "json"}


def test_columns_that_are_or_could_be_scored_take_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(columns_module, "MOST_COLUMNS", 1)
    write_jsonl(tmp_path / "x.jsonl", {"other_columns": 1, "b": 2, "messages": [], "prompt": "unused"})
    assert types(look(tmp_path)) == {
        "other_columns": pa.int64(),
        "input_prompt": pa.string(),
        "input_other_columns": "json",
    }


def test_names_that_are_taken_get_a_prefix(tmp_path):
    row = {"prompt": "p", "id": 1, "input_id": 2, "tuco": 3, "error": "e", "other": 4}
    write_jsonl(tmp_path / "x.jsonl", row)
    names = {extra.source: extra.name for extra in look(tmp_path).extras}
    assert names == {
        "id": "input_input_id",
        "input_id": "input_id",
        "tuco": "input_tuco",
        "error": "input_error",
        "other": "other",
    }


def test_what_became_id_and_prompt_is_not_repeated_and_nothing_else_is_lost(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", {"id": 1, "prompt": "p", "note": "n"})
    assert [e.name for e in look(tmp_path, Columns(id="id")).extras] == ["note"]
    write_jsonl(tmp_path / "x.jsonl", {"messages": [], "prompt": "unused"})
    assert [e.name for e in look(tmp_path).extras] == ["input_prompt"]


def test_rows_are_counted_up_to_the_limit(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", *[{"prompt": "p"}] * 7)
    (tmp_path / "b.csv").write_text('prompt\n"over\nlines"\nx\n')
    pq.write_table(pa.table({"prompt": ["p"] * 5}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("x\ny\n")
    assert look(tmp_path).rows == 7 + 2 + 5 + 2
    assert [look(tmp_path, limit=limit).rows for limit in (1, 8, 11, 15, 99)] == [1, 8, 11, 15, 16]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(), "no column 'prompt' or 'messages': .*x.jsonl has the columns text, n"),
        (Columns(prompt="txt"), "no column 'txt'"),
        (Columns(prompt="text", id="key"), "no column 'key' \\(--id-column\\)"),
        (Columns(prompt="text", messages="chat"), "no column 'chat' \\(--messages-column\\)"),
    ],
)
def test_unknown_columns_are_refused_with_the_ones_there_are(tmp_path, columns, message):
    write_jsonl(tmp_path / "x.jsonl", {"text": "p", "n": 1})
    with pytest.raises(InputError, match=message):
        look(tmp_path, columns)


def test_a_file_of_broken_rows_only_is_not_a_missing_column(tmp_path):
    (tmp_path / "x.jsonl").write_text("{\n{\n")
    assert look(tmp_path).rows == 2


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        (b'"open,2\nb,3\n"c",4\n', 5),  # the next quote closes it, and what follows does not fit
        (b'"open,2\nb,3\nc,4\n', 5),
        (b'"open,2\n\n' + b"b,3\n" * 100_000, 23),
    ],
)
def test_a_quote_that_is_not_closed_is_refused_for_the_rows_it_takes(tmp_path, monkeypatch, rows, last):
    monkeypatch.setattr(csv_text, "_LONGEST_FIELD", 80)
    (tmp_path / "x.csv").write_bytes(b"prompt,tag\na,1\n" + rows)
    with pytest.raises(InputError) as raised:
        look(tmp_path)
    assert f"the record that begins on line 3 goes on to line {last} and is broken (" in str(raised.value)


def test_a_csv_header_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "x.csv").write_bytes("prompt,café\nx,y\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"cannot read .*x\.csv as csv: its header is not UTF-8$"):
        look(tmp_path)


def test_of_many_columns_an_error_names_some(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", {f"c{n}": n for n in range(50)})
    with pytest.raises(InputError, match=r"has the columns c0, c1, .*, c19, \.\.\.; name one with"):
        look(tmp_path)


@pytest.mark.parametrize(
    "arrow",
    [
        pa.string(),
        pa.list_(pa.list_(pa.float64())),
        pa.timestamp("ns", "Europe/Zurich"),
        pa.decimal256(40, 5),
        pa.struct([pa.field("a", pa.int8(), nullable=False), pa.field("a", pa.null())]),
        pa.map_(pa.string(), pa.large_binary()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_view(pa.int32()),
        pa.uuid(),
        pa.fixed_shape_tensor(pa.int32(), [2, 2]),
    ],
)
def test_a_survey_goes_through_json(arrow):
    extras = (
        ExtraColumn("v", "input_v", arrow, as_json=False),
        ExtraColumn(None, "other_columns", pa.string(), as_json=True),
    )
    for found in (Survey(2**40, extras, True), Survey(0, (), False)):
        assert Survey.from_json(json.loads(json.dumps(found.to_json()))) == found
