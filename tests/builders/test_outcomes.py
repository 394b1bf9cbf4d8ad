"""Samples of answers: counted, resumed after a kill at any byte, and the same again."""

import json
from dataclasses import replace

import pytest

from tuco_vllm.builders import outcomes
from tuco_vllm.builders.outcomes import Sampling, left, read_outcomes, write_outcomes
from tuco_vllm.errors import InputError

ROWS = [{"id": f"r{n}", "messages": [{"role": "user", "content": f"p{n}"}], "kind": "x"} for n in range(5)]
SAMPLING = Sampling(samples=4, alphas=(1.0, 0.5), texts=True)


def fake(prompts, seeds, alpha):
    """Refuses where the seed is odd; says which prompt it was asked, and under which alpha."""
    assert len(prompts) == len(seeds)
    return [
        f"{prompt[0]['content']} {alpha} {seed}" + (" I'm sorry" if seed % 2 else "")
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def test_samples_are_counted(tmp_path):
    out = tmp_path / "new" / "o.jsonl"
    assert write_outcomes(ROWS, SAMPLING, out, fake) == 10
    rows = read_outcomes(out)
    assert [(row["id"], row["alpha"]) for row in rows] == [(f"r{n}", a) for a in (1.0, 0.5) for n in range(5)]
    for row in rows:
        assert row["kind"] == "x"
        assert "messages" not in row
        assert all(text.startswith(f"p{row['id'][1:]} {row['alpha']} ") for text in row["samples"])
        assert row["refusals"] == sum("sorry" in text for text in row["samples"])
        assert row["refusals"] + row["non_refusals"] == 4
        assert row["jailbroken"] is (row["non_refusals"] >= 2)
    assert len({text for row in rows for text in row["samples"]}) == 40, "a seed for each sample"
    assert {row["jailbroken"] for row in rows} == {True, False}
    assert not left(ROWS, SAMPLING, out)


def test_killed_at_any_byte_it_goes_on_and_comes_to_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "_CHUNK", 3)
    write_outcomes(ROWS, SAMPLING, tmp_path / "whole", fake)
    whole = (tmp_path / "whole").read_bytes()
    out = tmp_path / "cut"
    for size in range(0, len(whole), 7):
        out.write_bytes(whole[:size])
        write_outcomes(ROWS, SAMPLING, out, fake)
        assert out.read_bytes() == whole, f"cut to {size} bytes"


def test_saying_nothing_is_no_jailbreak(tmp_path):
    write_outcomes(ROWS, Sampling(), tmp_path / "o", lambda prompts, *_: [" \n"] * len(prompts))
    for row in read_outcomes(tmp_path / "o"):
        assert (row["empty"], row["refusals"], row["non_refusals"], row["jailbroken"]) == (8, 0, 0, False)


def test_other_prompts_and_settings_are_refused(tmp_path):
    out = tmp_path / "o"
    write_outcomes(ROWS, SAMPLING, out, fake)
    with pytest.raises(InputError, match="other prompts or settings"):
        left(ROWS[1:], SAMPLING, out)
    with pytest.raises(InputError, match="other prompts or settings"):
        left(ROWS, Sampling(samples=5, alphas=(1.0, 0.5), texts=True), out)
    with pytest.raises(InputError, match="other prompts or settings"):
        left(ROWS, replace(SAMPLING, models="another pair"), out)
    out.write_text(json.dumps({"a": 1}) + "\n" + json.dumps({"b": 1}) + "\n")
    with pytest.raises(InputError, match="is no file of outcomes"):
        left(ROWS, SAMPLING, out)


@pytest.mark.parametrize("theirs", [b"my only line", b'{"prompt": "a"}\n{"prompt": "b"}', b"\xff\xfe"])
def test_a_file_of_somebody_else_stays_as_it_was(tmp_path, theirs):
    out = tmp_path / "prompts.jsonl"
    out.write_bytes(theirs)
    with pytest.raises(InputError, match="name another --out"):
        write_outcomes(ROWS, SAMPLING, out, fake)
    assert out.read_bytes() == theirs
