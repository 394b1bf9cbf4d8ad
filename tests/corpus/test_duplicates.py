from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.corpus.duplicates import Duplicates, find_duplicates, hash_ids


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


def few_hashes(ids):
    return hash_ids(ids) % np.uint64(7)


def one_hash(ids):
    return np.full(len(ids), 2**64 - 1, np.uint64)


def last_hashes(ids):
    return hash_ids(ids) | np.uint64(2**64 - 64)


HASHES = [hash_ids, few_hashes, one_hash, last_hashes]


@pytest.mark.parametrize("hash_of", HASHES)
@pytest.mark.parametrize(("hashes_held", "bytes_held"), [(2, 1), (16, 200), (64, 2000), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("distinct", [1, 30, 700])
def test_as_a_counter_counts(parts_of, hash_of, hashes_held, bytes_held, distinct):
    if hashes_held == 2:
        distinct = min(distinct, 50)  # a reading for each is enough of them
    random = np.random.default_rng(distinct)
    ids = [f"é{n}" * (1 + n % 5) for n in random.integers(0, distinct, 500)]
    bounds = {"hashes_held": hashes_held, "bytes_held": bytes_held}
    assert find_duplicates(parts_of(ids), hash_of=hash_of, **bounds) == expected(ids)


@pytest.mark.parametrize("hash_of", HASHES)
def test_distinct_ids_are_no_duplicates_whatever_their_hashes(parts_of, hash_of):
    ids = [str(n) for n in range(300)]
    assert find_duplicates(parts_of(ids), hash_of=hash_of, hashes_held=16, bytes_held=500) == Duplicates()


@pytest.mark.parametrize("ids", [[], [None, None], ["a"], [""]])
def test_nothing_to_report(parts_of, ids):
    assert find_duplicates(parts_of(ids)) == Duplicates()


def test_no_parts():
    assert find_duplicates([]) == Duplicates()


def test_rows_in_different_parts_and_odd_ids(parts_of):
    ids = ["a", "", "a\0", "a", "\0", "", "long" * 10_000, "b", "a\0", None, "long" * 10_000, "a"]
    known = [each for each in ids if each is not None]
    assert find_duplicates(parts_of(ids, rows=1), bytes_held=100) == expected(known)


def test_what_is_held_is_bounded(parts_of, monkeypatch):
    from tuco_vllm.corpus import duplicates

    held = []
    original = duplicates._IdWindow._hold
    monkeypatch.setattr(
        duplicates._IdWindow,
        "_hold",
        lambda self, counts: (original(self, counts), held.append(self._bytes)),
    )
    ids = [str(n % 2000) for n in range(4000)]
    assert find_duplicates(parts_of(ids), bytes_held=8000).ids == 2000
    assert held
    assert max(held) <= 4000


def test_the_hash_is_of_all_bytes_and_the_same_in_every_process():
    ids = pa.array([b"a", b"a\0", b"b", b"", b"\xff"])
    assert len(set(hash_ids(ids))) == 5
    assert hash_ids(ids)[0] == 13950350942979735504
