import errno
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_scorer import LAYERS, fake_norms, fake_score

from tuco_vllm.corpus import publish
from tuco_vllm.corpus import writer as writer_module
from tuco_vllm.corpus.chunks import TOKEN_COLUMNS
from tuco_vllm.corpus.publish import OutputError, write_whole
from tuco_vllm.corpus.stages import scored as scored_chunk
from tuco_vllm.corpus.writer import PartWriter

FIXED = [
    *("id", "prompt", "prompt_tokens", "tuco", "preco", "ptc_norm", "ftc_norm", "beta_max"),
    *("tuco_l2", "path_tuco", "cosine", "cancellation"),
]
LISTS = ["ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms", "cosines"]


class Scores:
    def score(self, prompts):
        return [torch.tensor(fake_norms(ids)) for ids in prompts]


def scored(*numbers, templated=False, **columns):
    """A chunk with these rows."""
    values = [
        [f"r{n}" for n in numbers],
        [f"p{n}" for n in numbers],
        [[n] for n in numbers],
        pa.nulls(len(numbers), pa.string()),
        pa.nulls(len(numbers), pa.list_(pa.int32())),
        [templated] * len(numbers),
        pa.nulls(len(numbers), pa.string()),
    ]
    return scored_chunk(pa.table(values, names=TOKEN_COLUMNS), Scores(), **columns)


def failed(number, error="no good"):
    text, ids = pa.nulls(1, pa.string()), pa.nulls(1, pa.list_(pa.int32()))
    values = [[f"r{number}"], text, ids, text, ids, [False], [error]]
    return scored_chunk(pa.table(values, names=TOKEN_COLUMNS), Scores())


def writer(out, extras=(), **options):
    return PartWriter(out, extras, {"tuco.pt": "P"}, **({"rows_per_file": 10} | options))


def visible(out):
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def test_the_schema_is_the_contracts(tmp_path):
    w = writer(tmp_path)
    w.write(scored(1))
    w.write(failed(2))
    w.commit()
    table = pq.read_table(tmp_path)
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


def test_layers_and_prompt_can_be_left_out(tmp_path):
    w = writer(tmp_path, layers=False, prompt=False)
    w.write(scored(1, layers=False, prompt=False))
    w.commit()
    assert pq.read_table(tmp_path).column_names == ["id", *FIXED[2:], "error"]


def test_parts_are_cut_by_rows_and_metadata_says_where_a_template_was_applied(tmp_path):
    w = writer(tmp_path, rows_per_file=2, first_part=3)
    assert [w.write(scored(n, templated=n == 3)) for n in range(5)] == [False, True, False, True, False]
    w.commit()
    w.commit()  # nothing left: no part
    parts = ["part-00003.parquet", "part-00004.parquet", "part-00005.parquet"]
    assert visible(tmp_path) == parts
    assert w.rows_committed == 5
    metadata = [pq.read_schema(tmp_path / part).metadata for part in parts]
    assert [m[b"tuco.pt"] for m in metadata] == [b"P"] * 3
    applied = [pq.read_metadata(tmp_path / part).metadata[b"tuco.template_applied"] for part in parts]
    assert applied == [b"false", b"true", b"false"]


def test_a_chunk_may_span_parts(tmp_path):
    w = writer(tmp_path, rows_per_file=3)
    assert w.write(scored(*range(2))) is False
    assert w.write(scored(*range(2, 10))) is True
    w.commit()
    assert pq.read_table(tmp_path)["id"].to_pylist() == [f"r{n}" for n in range(10)]
    assert [pq.read_metadata(path).num_rows for path in sorted(tmp_path.iterdir())] == [3, 3, 3, 1]


def test_a_part_that_is_open_for_long_is_committed(tmp_path, monkeypatch):
    w = writer(tmp_path, rows_per_file=1000)
    assert w.write(scored(1)) is False
    monkeypatch.setattr(writer_module, "_SECONDS_OPEN", 0.0)
    assert w.write(scored(2, 3)) is True
    assert pq.read_table(tmp_path)["id"].to_pylist() == ["r1", "r2", "r3"]


def test_row_groups_end_after_some_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "_ROW_GROUP_BYTES", 2 * scored(1, 2).nbytes)
    w = writer(tmp_path)
    for n in range(0, 10, 2):
        w.write(scored(n, n + 1))
    (part,) = tmp_path.iterdir()
    metadata = pq.read_metadata(part)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [4, 4, 2]
    assert pq.read_table(part)["id"].to_pylist() == [f"r{n}" for n in range(10)]


def test_nothing_half_written_is_visible(tmp_path):
    w = writer(tmp_path, rows_per_file=100_000)
    for n in range(0, 10_000, 500):  # several row groups are on disk already
        w.write(scored(*range(n, n + 500)))
    assert visible(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [".part-00000.parquet.tmp"]
    w.rescue()
    assert pq.read_table(tmp_path)["id"].to_pylist() == [f"r{n}" for n in range(10_000)]
    assert visible(tmp_path) == ["part-00000.parquet"]


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(tmp_path, monkeypatch, call):
    w = writer(tmp_path, rows_per_file=2)
    w.write(scored(0))
    w.write(scored(1))
    w.write(scored(2))
    monkeypatch.setattr(publish.os, call, full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*part-00001.parquet: No space left on device"):
        w.write(scored(3))
    w.rescue()
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]


def test_a_disk_that_fills_up_while_a_row_group_is_written(tmp_path):
    w = writer(tmp_path, rows_per_file=1)
    w.write(scored(0))
    (tmp_path / ".part-00001.parquet.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        w.write(scored(1))
    w.rescue()
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]


def test_an_interruption_in_the_midst_of_a_write_never_doubles_a_row(tmp_path, monkeypatch):
    w = writer(tmp_path, rows_per_file=3)
    w.write(scored(0))
    w.write(scored(1))
    write_table = pq.ParquetWriter.write_table

    def interrupted(self, table):
        write_table(self, table)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            w.write(scored(2))
    w.rescue()
    assert visible(tmp_path) == []


def test_small_files_are_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_whole(path, "old")
    monkeypatch.setattr(publish.os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
