import errno
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_scorer import LAYERS, fake_score

from tuco_vllm.corpus import publish
from tuco_vllm.corpus.columns import ExtraColumn
from tuco_vllm.corpus.publish import OutputError, write_whole
from tuco_vllm.corpus.writer import PartWriter
from tuco_vllm.errors import InputError
from tuco_vllm.records import ScoredRow

FIXED = ["id", "prompt", "prompt_tokens", "tuco", "preco", "ptc_norm", "ftc_norm", "beta_max"]
LISTS = ["ptc_norms", "ftc_norms", "cum_ptc_norms", "cum_ftc_norms"]


def scored(number, templated=False, **extra):
    return ScoredRow(f"r{number}", f"p{number}", 2, fake_score([number]), None, extra, templated)


def failed(number, error="no good"):
    return ScoredRow(f"r{number}", None, None, None, error)


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
    w.write(scored(1))
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


def test_extra_columns_keep_values_and_become_json_where_told(tmp_path):
    extras = [
        ExtraColumn("n", "n", pa.int64(), as_json=False),
        ExtraColumn("id", "input_id", pa.string(), as_json=False),
        ExtraColumn("any", "any", pa.string(), as_json=True),
    ]
    w = writer(tmp_path, extras)
    w.write(scored(1, n=2**60, id="mine", any={"ä": [1, None]}))
    w.write(scored(2, n=pa.scalar(5, pa.int32()), any="text"))
    w.write(failed(3))
    w.commit()
    table = pq.read_table(tmp_path)
    assert table.column_names[-3:] == ["n", "input_id", "any"]
    assert table["n"].to_pylist() == [2**60, 5, None]
    assert table["input_id"].to_pylist() == ["mine", None, None]
    texts = table["any"].to_pylist()
    assert [json.loads(text) for text in texts[:2]] == [{"ä": [1, None]}, "text"]
    assert texts[2] is None


def test_a_value_that_no_longer_fits_says_that_the_input_changed(tmp_path):
    w = writer(tmp_path, [ExtraColumn("n", "n", pa.int64(), as_json=False)])
    w.write(scored(1, n="text"))
    with pytest.raises(InputError, match="column 'n' no longer fits int64: the input changed"):
        w.commit()
    w.rescue()
    assert visible(tmp_path) == []


def test_nothing_half_written_is_visible(tmp_path):
    w = writer(tmp_path, rows_per_file=100_000)
    for n in range(10_000):  # several row groups are on disk already
        w.write(scored(n))
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
