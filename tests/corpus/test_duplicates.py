from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.corpus.duplicates import Duplicates, find_duplicates


@pytest.fixture
def parts_of(tmp_path):
    """Ids -> parts of ``rows`` rows each."""

    def write(ids, rows=100):
        paths = []
        for start in range(0, len(ids), rows) or [0]:
            paths.append(tmp_path / f"part-{len(paths):05}.parquet")
            table = pa.table({"id": pa.array(ids[start : start + rows], pa.string())})
            pq.write_table(table, paths[-1], row_group_size=30)
        return paths

    return write


def expected(ids):
    repeated = {each: count for each, count in Counter(ids).items() if count > 1}
    top = sorted(repeated.items(), key=lambda item: (-item[1], item[0].encode()))
    return Duplicates(len(repeated), sum(repeated.values()), tuple(top[:5]))


@pytest.mark.parametrize("distinct", [1, 30, 700])
def test_as_a_counter_counts(parts_of, distinct):
    random = np.random.default_rng(distinct)
    ids = [f"é{n}" * (1 + n % 5) for n in random.integers(0, distinct, 500)]
    assert find_duplicates(parts_of(ids)) == expected(ids)


@pytest.mark.parametrize("ids", [[], [None, None], ["a"], [""], [str(n) for n in range(300)]])
def test_nothing_to_report(parts_of, ids):
    assert find_duplicates(parts_of(ids)) == Duplicates()


def test_no_parts():
    assert find_duplicates([]) == Duplicates()


def test_rows_in_different_parts_and_odd_ids(parts_of):
    ids = ["a", "", "a\0", "a", "\0", "", "long" * 10_000, "b", "a\0", None, "long" * 10_000, "a"]
    ids += ["\U0001f98a", "\uffff", "\U0001f98a", "\uffff"]  # in the order of bytes, not of UTF-16
    known = [each for each in ids if each is not None]
    assert find_duplicates(parts_of(ids, rows=1)) == expected(known)


def test_parts_may_be_open_files(parts_of):
    paths = parts_of(["a", "b", "a"], rows=1)
    assert find_duplicates(path.open("rb") for path in paths) == Duplicates(1, 2, (("a", 2),))


def test_a_part_that_cannot_be_read_is_no_silence(parts_of):
    paths = parts_of(["a", "b", "a"], rows=1)
    paths[1].write_bytes(b"no Parquet, though as long as one")
    with pytest.raises(pa.ArrowInvalid, match="Parquet"):
        find_duplicates(paths)


def test_what_memory_does_not_hold_is_on_disk_and_then_gone(parts_of, tmp_path):
    ids = [f"{n % 450_000:064}" for n in range(500_000)]
    folder = tmp_path / "ids"
    folder.mkdir()
    found = find_duplicates(parts_of(ids, rows=100_000), folder, memory="40MB")
    assert (found.ids, found.rows) == (50_000, 100_000)
    assert not list(folder.iterdir())
