"""Sources that differ: one type per column where no value changes, else JSON text."""

import json
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.plan import surveyed
from tuco_vllm.corpus.unions import union


def struct(**fields):
    return pa.struct(fields)


NARROW, WIDE = struct(a=pa.int32()), struct(b=pa.string(), a=pa.int64())
REQUIRED = pa.struct([pa.field("a", pa.int32(), nullable=False)])
TWICE = pa.struct([pa.field("a", pa.int32()), pa.field("a", pa.int32())])
OLD, LATE = datetime(1, 1, 1), datetime(9999, 12, 31)
"""A nanosecond's years are 1677 to 2262."""


def write(directory, *columns):
    for number, values in enumerate(columns):
        table = pa.table({"prompt": ["p"] * len(values), "v": values})
        pq.write_table(table, directory / f"{number}.parquet")


def type_of(directory):
    (extra,) = surveyed(find_inputs([str(directory)], out=directory / "out"), Columns())[0].extras
    return "json" if extra.as_json else extra.type


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([pa.array(["a"]), pa.array(["b"], pa.large_string())], pa.large_string()),
        ([pa.array(["a"]), pa.array(["b"]).dictionary_encode()], pa.string()),
        ([pa.array(["a"]), pa.array([b"\xff"])], pa.binary()),
        ([pa.array([1], pa.int8()), pa.array([2], pa.uint8())], pa.int16()),
        ([pa.array([1], pa.int32()), pa.array([2**62])], pa.int64()),
        ([pa.array([-(2**31)], pa.int32()), pa.array([0.5])], pa.float64()),
        ([pa.array([2**53]), pa.array([0.5], pa.float32())], pa.float64()),
        ([pa.array([2**53 + 1]), pa.array([0.5])], "json"),
        ([pa.array([2**53 + 2]), pa.array([0.5])], "json"),  # a double, but its neighbour is none
        ([pa.array([2**64 - 1], pa.uint64()), pa.array([-1])], "json"),
        ([pa.array([2**63 - 1], pa.uint64()), pa.array([-1])], pa.int64()),
        ([pa.array([OLD], pa.timestamp("ms")), pa.array([LATE], pa.timestamp("us"))], pa.timestamp("us")),
        (
            [pa.array([datetime(2020, 1, 1)], pa.timestamp("ms")), pa.array([5], pa.timestamp("ns"))],
            pa.timestamp("ns"),
        ),
        ([pa.array([LATE], pa.timestamp("ms")), pa.array([5], pa.timestamp("ns"))], "json"),
        ([pa.array([5], pa.timestamp("us")), pa.array([5], pa.timestamp("us", "UTC"))], "json"),
        ([pa.array([5], pa.duration("ms")), pa.array([5], pa.duration("ns"))], pa.duration("ns")),
        ([pa.array([Decimal("1.5")]), pa.array([Decimal("20.25")])], pa.decimal128(4, 2)),
        ([pa.array([Decimal("1.1")]), pa.array([0.5])], "json"),
        ([pa.array([True]), pa.array([1])], "json"),
        (
            [pa.array([{"a": 1}], NARROW), pa.array([{"a": 2, "b": "x"}], WIDE)],
            struct(a=pa.int64(), b=pa.string()),
        ),
        ([pa.array([{"a": 1}], NARROW), pa.array([{"a": 2**60}]), pa.array([{"a": 0.5}])], "json"),
        ([pa.array([{"a": 7}]), pa.array([{"a": 0.5}])], struct(a=pa.float64())),
        ([pa.array([{"a": 1}], REQUIRED), pa.array([{"b": 1}])], "json"),
        (
            [pa.array([[{"a": 1}]], pa.list_(NARROW)), pa.array([[]], pa.large_list(WIDE))],
            pa.large_list(struct(a=pa.int64(), b=pa.string())),
        ),
        ([pa.array([[1]], pa.list_(pa.int32(), 1)), pa.array([[0.5]])], pa.list_(pa.float64())),
        ([pa.array([{"a": None}], struct(a=pa.null())), pa.array([{"a": 1}])], struct(a=pa.int64())),
        ([pa.nulls(1), pa.array([bytes(16)], pa.uuid())], pa.uuid()),
        ([pa.array([bytes(16)], pa.uuid()), pa.array([bytes(16)], pa.binary(16))], "json"),
    ],
)
def test_parquet_files_that_differ(score, tmp_path, columns, expected):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", *columns)
    assert type_of(tmp_path / "in") == expected
    score(tmp_path / "in")
    out = pq.read_table(tmp_path / "out")["v"]
    if expected != "json":
        assert out.type == expected
        given = [pa.chunked_array([each]).cast(expected) for each in columns]
        assert out.to_pylist() == [value for each in given for value in each.to_pylist()]


@pytest.mark.parametrize(
    ("lines", "column", "expected"),
    [
        ([1], pa.array([0.5]), pa.float64()),
        ([2**53 + 1], pa.array([0.5]), "json"),
        ([0.5], pa.array([2**53 + 1]), "json"),
        ([0.5], pa.array([7]), pa.float64()),
        ([1, None], pa.array([7], pa.int8()), pa.int64()),
        (["a"], pa.array(["b"], pa.large_string()), pa.large_string()),
        (["ä"], pa.array([b"b"]), pa.binary()),
        ([[1]], pa.array([[0.5]]), pa.list_(pa.float64())),
        ([[2**53 + 1]], pa.array([[0.5]]), "json"),
        ([7], pa.array([Decimal("1.5")], pa.decimal256(40, 5)), pa.decimal256(40, 5)),
        (["a"], pa.array([7]), "json"),
        ([{"a": 1}], pa.array([{"a": 1}]), "json"),
    ],
)
def test_json_and_parquet_that_differ(score, tmp_path, lines, column, expected):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", column)
    rows = "".join(json.dumps({"prompt": "p", "v": value}) + "\n" for value in lines)
    (tmp_path / "in/x.jsonl").write_text(rows)
    assert type_of(tmp_path / "in") == expected
    score(tmp_path / "in")
    out = pq.read_table(tmp_path / "out")["v"].to_pylist()
    if expected == "json":
        assert [json.loads(value) for value in out] == [*column.to_pylist(), *lines]
    else:
        encoded = [value.encode() if expected == pa.binary() else value for value in lines]
        assert out == [*column.to_pylist(), *encoded]


def tensors():
    storage = pa.array([[1, 2, 3, 4], None], pa.list_(pa.int32(), 4))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2, 2]), storage)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([{"a": None}, None], struct(a=pa.null())),
        pa.array([{"a": [{"b": None}]}, None], struct(a=pa.list_(struct(b=pa.null())))),
        tensors(),
        pa.StructArray.from_arrays([tensors()], ["t"]),
        pa.ListArray.from_arrays([0, 1, 2], tensors()),
        pa.ListArray.from_arrays([0, 1, 1], pa.array([bytes(16)], pa.uuid())),
        pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"]),
        pa.array([[1], None], pa.list_view(pa.int32())),
        pa.array([[("k", [("n", 1.5)])], []], pa.map_(pa.string(), pa.map_(pa.string(), pa.float64()))),
    ],
)
def test_types_that_pyarrow_cannot_put_together_from_scalars_are_carried(score, tmp_path, values):
    write(tmp_path, values)
    given = pq.read_table(tmp_path / "0.parquet")["v"]
    (tmp_path / "1.jsonl").write_text('{"prompt": "p"}\n')
    score(tmp_path / "0.parquet", tmp_path / "1.jsonl")
    out = pq.read_table(tmp_path / "out")["v"]
    assert out.type == given.type
    assert out.slice(0, 2).combine_chunks().equals(given.combine_chunks())
    assert out[2].as_py() is None


def test_structs_with_two_fields_of_one_name_have_no_union():
    assert union([TWICE, NARROW]) is None
    assert union([TWICE, TWICE]) == TWICE
