"""A part is its unit's rows and proves it; one that is not whole proves nothing."""

import errno
import io
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_scorer import LAYERS, fake_norms, fake_score

from tuco_vllm.corpus import part as part_module
from tuco_vllm.corpus.chunks import SCORED_COLUMNS, TOKEN_COLUMNS
from tuco_vllm.corpus.columns import ExtraColumn
from tuco_vllm.corpus.part import PartWriter, proof_of
from tuco_vllm.corpus.stages import scored as scored_chunk
from tuco_vllm.corpus.unit import Unit, UnitDone

FIXED = [
    *("id", "prompt", "prompt_tokens", "tuco", "preco", "ptc_norm", "ftc_norm", "beta_max"),
    *("tuco_l2", "path_tuco", "cosine", "cancellation"),
]
LISTS = ["ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms", "cosines"]
JOB = "0123abcd"
UNIT = Unit(number=7, file=1, first=100, row=1000, rows=3, offset=0)


class Scores:
    def score(self, prompts):
        return [torch.tensor(fake_norms(ids)) for ids in prompts]


def scored(*numbers, templated=False, extras=(), **columns):
    """A chunk with these rows; ``extras`` are names of columns that hold the numbers."""
    values = [
        [f"r{n}" for n in numbers],
        [f"p{n}" for n in numbers],
        [[n] for n in numbers],
        pa.nulls(len(numbers), pa.string()),
        pa.nulls(len(numbers), pa.list_(pa.int32())),
        [templated] * len(numbers),
        pa.nulls(len(numbers), pa.string()),
        *([*numbers] for _ in extras),
    ]
    return scored_chunk(pa.table(values, names=[*TOKEN_COLUMNS, *extras]), Scores(), **columns)


def failed(number, error="no good", set_aside=False):
    text, ids = pa.nulls(1, pa.string()), pa.nulls(1, pa.list_(pa.int32()))
    values = [[f"r{number}"], text, ids, text, ids, [False], [error]]
    chunk = scored_chunk(pa.table(values, names=TOKEN_COLUMNS), Scores())
    return chunk.set_column(SCORED_COLUMNS.index("set_aside"), "set_aside", pa.array([set_aside]))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "part.parquet"


def write(file, *chunks, unit=UNIT, extras=(), **columns) -> UnitDone:
    rows = sum(chunk.num_rows for chunk in chunks)
    metadata = {"tuco.pt": "P", "tuco.job": JOB}
    with PartWriter(file, replace(unit, rows=rows), extras, metadata, **columns) as part:
        for chunk in chunks:
            part.write(chunk)
        so_far, done = part.done, part.close()
    assert replace(so_far, size=file.stat().st_size) == done
    return done


def proof(data, unit=UNIT, job=JOB):
    return proof_of(io.BytesIO(data), len(data), unit, job)


def test_the_schema_is_the_contracts(file):
    write(file, scored(1), failed(2))
    table = pq.read_table(file)
    assert table.column_names == [*FIXED, *LISTS, "error"]
    types = {name: table.schema.field(name).type for name in table.column_names}
    assert types["id"] == types["prompt"] == types["error"] == pa.string()
    assert types["prompt_tokens"] == pa.int32()
    assert all(types[name] == pa.float64() for name in FIXED[3:])
    assert all(pa.types.is_float32(types[name].value_type) for name in LISTS)
    good, bad = table.to_pylist()
    expected = fake_score([1])
    assert good["tuco"] == expected.tuco
    assert good["cum_ftc_norms"] == expected.cum_ftc_norms
    assert len(good["ptc_norms"]) == LAYERS
    assert good["error"] is None
    assert bad["error"] == "no good"
    assert all(bad[name] is None for name in [*FIXED[2:], *LISTS])


def test_layers_and_prompt_can_be_left_out(file):
    write(file, scored(1, layers=False, prompt=False), layers=False, prompt=False)
    assert pq.read_table(file).column_names == ["id", *FIXED[2:], "error"]


def test_an_input_column_may_have_the_name_of_one_that_is_not_written(file):
    names = ["response_tucos", "templated"]
    extras = [ExtraColumn(name, name, pa.int64(), as_json=False) for name in names]
    write(file, scored(5, 6, extras=names), extras=extras)
    table = pq.read_table(file)
    assert table.column_names == [*FIXED, *LISTS, "error", *names]
    assert all(table[name].to_pylist() == [5, 6] for name in names)


def test_a_part_says_what_it_is_and_its_counts(file):
    done = write(file, scored(1, 2), failed(3), scored(4), failed(5, set_aside=True))
    unit = replace(UNIT, rows=5)
    assert done == UnitDone(7, 5, 2, 3, file.stat().st_size, (1004,))
    assert proof(file.read_bytes(), unit) == done
    metadata = pq.read_metadata(file).metadata
    said = {name.decode(): value.decode() for name, value in metadata.items() if name.startswith(b"tuco.")}
    assert said == {
        "tuco.pt": "P",
        "tuco.job": JOB,
        "tuco.unit": "7",
        "tuco.first_row": "1000",
        "tuco.rows": "5",
        "tuco.errors": "2",
        "tuco.prompt_tokens": "3",
        "tuco.set_aside": "[1004]",
        "tuco.template_applied": "false",
        "tuco.templated_rows": "0",
    }


@pytest.mark.parametrize("templated", [[True, False], [False, True], [False, False]])
def test_metadata_says_whether_a_template_was_applied(file, templated):
    write(file, *(scored(n, templated=flag) for n, flag in enumerate(templated)))
    metadata = pq.read_metadata(file).metadata
    assert json.loads(metadata[b"tuco.template_applied"]) == any(templated)
    assert json.loads(metadata[b"tuco.templated_rows"]) == sum(templated)


def test_a_part_of_no_rows_has_its_schema(file):
    done = write(file)
    assert (done.rows, done.errors, done.prompt_tokens) == (0, 0, 0)
    assert proof(file.read_bytes(), replace(UNIT, rows=0)) == done
    assert pq.read_table(file).column_names == [*FIXED, *LISTS, "error"]


def test_row_groups_end_after_some_rows_or_bytes(file, monkeypatch):
    monkeypatch.setattr(part_module, "_ROW_GROUP_BYTES", 2 * scored(1, 2).nbytes - 10)
    write(file, *(scored(n, n + 1) for n in range(0, 10, 2)))
    groups = pq.read_metadata(file)
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [4, 4, 2]
    assert pq.read_table(file)["id"].to_pylist() == [f"r{n}" for n in range(10)]
    write(file, *(scored(*range(n, n + 3000)) for n in (0, 3000, 6000)))
    groups = pq.read_metadata(file)
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [3000, 3000, 3000]
    monkeypatch.setattr(part_module, "_ROW_GROUP_BYTES", 64 << 20)
    write(file, *(scored(*range(n, n + 3000)) for n in (0, 3000, 6000)))
    groups = pq.read_metadata(file)
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [6000, 3000]


@pytest.mark.parametrize("rows", [2, 4])
def test_a_unit_with_rows_too_few_or_too_many_is_no_part(file, rows):
    with PartWriter(file, UNIT, (), {"tuco.job": JOB}) as part:
        part.write(scored(*range(rows)))
        with pytest.raises(RuntimeError, match=f"unit 7 has 3 rows, and {rows} came out of it"):
            part.close()
    assert proof(file.read_bytes()) is None


def test_a_part_that_was_left_is_not_whole(file):
    with PartWriter(file, UNIT, (), {"tuco.job": JOB}) as part:
        part.write(scored(1, 2, 3))
    assert proof(file.read_bytes()) is None


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_an_error_of_the_disk(file):
    file.symlink_to("/dev/full")
    with PartWriter(file, UNIT, (), {"tuco.job": JOB}) as part:
        part.write(scored(1, 2, 3))
        with pytest.raises(OSError, match="No space left on device") as full:
            part.close()
    assert full.value.errno == errno.ENOSPC


def test_whatever_a_part_was_cut_to_proves_nothing(file):
    done = write(file, scored(1, 2, 3))
    data = file.read_bytes()
    assert proof(data) == done
    assert all(proof(data[:length]) is None for length in range(len(data)))
    assert proof(b"\0" * len(data)) is None
    assert proof(data[:-300] + bytes(292) + data[-8:]) is None


@pytest.mark.parametrize(
    ("unit", "job"),
    [
        (UNIT, "other"),
        (replace(UNIT, number=8), JOB),
        (replace(UNIT, row=1003), JOB),
        (replace(UNIT, rows=4), JOB),
    ],
)
def test_a_part_of_another_job_or_unit_proves_nothing(file, unit, job):
    write(file, scored(1, 2, 3))
    assert proof(file.read_bytes(), unit, job) is None


def test_a_file_of_others_proves_nothing(file):
    pq.write_table(pa.table({"id": ["a", "b", "c"]}), file)
    assert proof(file.read_bytes()) is None
    metadata = {"tuco.job": JOB, "tuco.unit": "7", "tuco.first_row": "1000", "tuco.rows": "3"}
    pq.write_table(pa.table({"id": ["a", "b", "c"]}).replace_schema_metadata(metadata), file)
    assert proof(file.read_bytes()) is None


def test_a_footer_may_be_long(file, monkeypatch):
    extras = [ExtraColumn(f"column {n}", f"column {n}", pa.int64(), as_json=False) for n in range(900)]
    done = write(file, scored(1, 2, 3, extras=[extra.name for extra in extras]), extras=extras)
    assert proof(file.read_bytes()) == done
    monkeypatch.setattr(part_module, "_TAIL", 100)
    assert proof(file.read_bytes()) == done


def test_a_store_that_does_not_answer_proves_nothing_either_way():
    class Silent(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.ETIMEDOUT, "timed out")

    with pytest.raises(OSError, match="timed out"):
        proof_of(Silent(), 1000, UNIT, JOB)


def test_the_body_is_not_read(file):
    write(file, scored(*range(30_000)))
    read = []

    class Counting(io.BytesIO):
        def read(self, size):
            read.append(size)
            return super().read(size)

    data = file.read_bytes()
    assert proof_of(Counting(data), len(data), replace(UNIT, rows=30_000), JOB) is not None
    assert sum(read) < len(data) / 4
