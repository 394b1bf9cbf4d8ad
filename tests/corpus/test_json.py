"""Files that end in .json: an array of rows, or a row a line."""

import json
import tracemalloc

import pytest

from tuco_vllm.corpus import json_text
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.readers import Mark, read_records
from tuco_vllm.errors import InputError


def read(directory, data, name="x.json"):
    (directory / name).write_bytes(data)
    (file,) = find_inputs([str(directory / name)], out=directory / "out")
    return list(read_records(file))


@pytest.mark.parametrize("data", [b"", b"[]", b" [ \r\n ]\n", b"\xef\xbb\xbf[]", b"\n\n", b"\xef\xbb\xbf"])
def test_nothing_is_no_rows(tmp_path, data):
    assert read(tmp_path, data) == []


def test_lines_are_read_as_of_jsonl(tmp_path):
    data = b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n\r\n{"prompt": broken\n{"prompt": "b"}'
    records = read(tmp_path, data)
    assert [record.columns.get("prompt") for record in records] == ["a", None, "b"]
    assert records[1].error.startswith("broken JSON: ")


AWKWARD = [
    (b'{"prompt": "], \\"[{ \\\\", "v": [[{"a": [1]}], {}]}', None),
    (b'"text"', "broken record: it is a string, not an object"),
    (b'[["nested"]]', "broken record: it is a list, not an object"),
    (b"null", "broken record: it is null, not an object"),
    (b'{"prompt": "\xff"}', "invalid UTF-8 at byte 12 of the element"),
    (b'{"prompt": "\\ud800"}', "the record holds a lone surrogate (\\ud800), which is not text"),
    (b'{"v": %s}' % (b"[" * 5000 + b"]" * 5000), "broken JSON: it nests more than 500 levels deep"),
    (b'{"v": %s}' % (b"9" * 5000), "broken JSON: Exceeds the limit"),
    (b'{"v": %s}' % (b"9" * 4000), None),
    (b'{"v": [NaN, -Infinity, 1e999, -0.0]}', None),
    (b'{"v": 1, "v": 2}', None),
    (b'{"": 0, "\\u00e4": "\\u0000"}', None),
]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("space", [b"", b" \r\n\t"])
def test_awkward_elements_cost_only_themselves(tmp_path, monkeypatch, space, read_bytes):
    monkeypatch.setattr(json_text, "_READ", read_bytes)
    between = space + b"," + space
    records = read(
        tmp_path, space + b"[" + space + between.join(each for each, _ in AWKWARD) + space + b"]" + space
    )
    for record, (element, error) in zip(records, AWKWARD, strict=True):
        if error is None:
            assert record.error is None
            assert repr(record.columns) == repr(json.loads(element))
        else:
            shift = len(space) if "byte" in error else 0  # an element has the space around it
            assert record.error.startswith(error.replace("12", str(12 + shift)))
    (file,) = find_inputs([str(tmp_path / "x.json")], out=tmp_path / "out")
    for number, record in enumerate(records, 1):
        assert repr(list(read_records(file, start=Mark(number, record.end)))) == repr(records[number:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[", "its array has no end"),
        (b'[{"prompt": "a"}', "its array has no end"),
        (b'[{"prompt": "a"}, {"prompt": "b]\n', "its array has no end"),
        (b'[{"prompt": "a"}}', "its array ends with }"),
        (b'[{"prompt": "a"}][]', "something follows the end of its array"),
        (b'[{"prompt": "a"}]\n' + b" " * (2 << 20) + b"x", "something follows the end of its array"),
        (b'[{"prompt": "a"},]', "element 1 of its array is broken: "),
        (b'[{"prompt": "a"},,{}]', "element 1 of its array is broken: "),
        (b'[{"prompt": "a"} {"prompt": "b"}]', "element 0 of its array is broken: Extra data"),
        (b'[{"prompt": "a}, {"prompt": b"}]', "element 0 of its array is broken: "),
        (b'[{"prompt": "a"], {"prompt": "b"}]', "element 0 of its array is broken: "),
        (
            b'{\n "prompt": "a"\n}',
            "it is one object over several lines: write an array of rows, or a row a line",
        ),
    ],
)
def test_what_is_broken_is_one_line_with_the_files_name(tmp_path, data, message):
    with pytest.raises(InputError) as raised:
        read(tmp_path, data)
    said = str(raised.value)
    assert said.startswith(f"cannot read {tmp_path}/x.json as jsonl: {message}")
    assert "\n" not in said


def test_an_array_is_one_only_where_the_name_says_json(tmp_path):
    (record,) = read(tmp_path, b'[{"prompt": "a"}]', name="x.jsonl")
    assert record.error == "broken record: it is a list, not an object"


def test_memory_is_bounded_by_the_largest_element(tmp_path):
    row = b'{"prompt": "%s", "n": [1, 2, 3]}' % (b"x" * 1000)
    (tmp_path / "x.json").write_bytes(b"[" + b",".join([row] * 30_000) + b"]")  # 30 MB in one line
    (file,) = find_inputs([str(tmp_path / "x.json")], out=tmp_path / "out")
    tracemalloc.start()
    assert sum(1 for record in read_records(file)) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
