"""The file of `tuco calibrate` as servers and reports read it: what it answers, and what is no such file."""

import copy
import json
import subprocess
import sys

import pytest

from tuco_vllm.errors import InputError
from tuco_vllm.flagging import Bucket, Flags

CONTENT = {
    "format": "tuco calibration",
    "version": 1,
    "pair": {"pt": {"name": "org/base", "fingerprint": "p"}, "ft": {"name": "org/chat", "fingerprint": "f"}},
    "dtype": "bfloat16",
    "row_dtype": "bfloat16",
    "column": "tuco",
    "direction": "below",
    "fpr": 0.05,
    "templates": [
        {
            "template": "sha",
            "buckets": [{"tokens": [5, 20], "threshold": 0.25}, {"tokens": [21, 90], "threshold": 1}],
        },
        {"template": None, "buckets": [{"tokens": [1, 4], "threshold": 0.5, "low": None, "more": "x"}]},
    ],
}


@pytest.fixture
def read(tmp_path):
    def read(content=CONTENT, **changes):
        path = tmp_path / "flags.json"
        path.write_text(json.dumps({**content, **changes}))
        return Flags.read(path)

    return read


def test_a_threshold_is_of_a_form_and_a_length(read):
    flags = read()
    assert flags.templates == {"sha": (Bucket(5, 20, 0.25), Bucket(21, 90, 1.0)), None: (Bucket(1, 4, 0.5),)}
    found = [flags.threshold("sha", tokens) for tokens in (4, 5, 20, 21, 90, 91)]
    assert found == [None, 0.25, 0.25, 1.0, 1.0, None]
    assert [flags.threshold(None, tokens) for tokens in (0, 1, 4, 5)] == [None, 0.5, 0.5, None]
    assert flags.threshold("other", 10) is None
    assert (flags.column, flags.fpr, flags.ft, flags.ft_fingerprint) == ("tuco", 0.05, "org/chat", "f")


@pytest.mark.parametrize(("direction", "low", "high"), [("below", True, False), ("above", False, True)])
def test_what_lies_beyond_a_threshold_is_flagged(read, direction, low, high):
    flags = read(direction=direction)
    assert [flags.flagged("sha", 10, value) for value in (0.2, 0.25, 0.3)] == [low, False, high]
    assert [flags.flagged("sha", 10, value) for value in (None, float("nan"), float("inf"))] == [None] * 3
    assert flags.flagged("sha", 1000, 0.2) is None
    assert flags.flagged("other", 10, 0.2) is None


def broken(change):
    content = copy.deepcopy(CONTENT)
    change(content)
    return content


def bucket(content):
    return content["templates"][0]["buckets"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("column"), "'column' is missing"),
        (lambda c: c.pop("pair"), "'pair' is missing"),
        (lambda c: c.update(pair=5), "not subscriptable"),
        (lambda c: c["pair"]["ft"].update(fingerprint=None), "None is no text"),
        (lambda c: c.update(direction="sideways"), "'sideways' is none of below, above"),
        (lambda c: c.update(direction=["below"]), "is none of below"),
        (lambda c: c.update(fpr="1"), "'1' is no finite number"),
        (lambda c: c.update(templates=[]), "no thresholds"),
        (lambda c: c.update(templates=None), "not iterable"),
        (lambda c: c.update(templates=[{"template": "sha", "buckets": []}]), "no thresholds"),
        (lambda c: c["templates"].append(c["templates"][0]), "two entries"),
        (lambda c: c["templates"][0].update(template=5), "5 is no text"),
        (lambda c: bucket(c).update(threshold=float("nan")), "nan is no finite number"),
        (lambda c: bucket(c).update(threshold=float("inf")), "inf is no finite number"),
        (lambda c: bucket(c).update(threshold=10**400), "too large"),
        (lambda c: bucket(c).update(threshold=True), "True is no finite number"),
        (lambda c: bucket(c).update(threshold=None), "None is no finite number"),
        (lambda c: bucket(c).update(tokens=[5, 21]), "overlap"),
        (lambda c: bucket(c).update(tokens=[5]), "not enough values"),
        (lambda c: bucket(c).update(tokens=[9, 5]), "tokens are"),
        (lambda c: bucket(c).update(tokens=[5.0, 9]), "tokens are"),
        (lambda c: bucket(c).update(tokens=[True, 9]), "tokens are"),
        (lambda c: c.update(version=2), "of version 2, not 1"),
        (lambda c: c.pop("version"), "of version None, not 1"),
    ],
)
def test_what_is_broken_is_named_with_the_mend(read, change, message):
    with pytest.raises(InputError, match=message) as refused:
        read(broken(change))
    assert "make it anew with tuco calibrate" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", "{}", '{"format": "other"}', "\xff\xfe", "[" * 100_000, "null"]
)
def test_what_is_no_calibration_is_told(tmp_path, text):
    (tmp_path / "x").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="is no file of tuco calibrate: name one that is"):
        Flags.read(tmp_path / "x")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the calibration .*nowhere: No such file"):
        Flags.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot read the calibration"):
        Flags.read(tmp_path)


def test_reading_loads_nothing_heavy():
    code = "import sys, tuco_vllm.flagging; print({'torch', 'numpy', 'pyarrow', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
