"""From `tuco score`'s own parts to a calibration: what their footers say of templates is what it reads."""

import json

import pyarrow.parquet as pq
import pytest

from tuco_vllm import cli
from tuco_vllm.flagging import Flags


@pytest.fixture
def calibrate(tmp_path, capsys):
    """Of the runs named; returns the file, or the error."""

    def call(*names, **options):
        given = [f"--{name}={value}" for name, value in {"fpr": 0.1, **options}.items()]
        out = tmp_path / "flags.json"
        code = cli.main(["calibrate", *(str(tmp_path / name) for name in names), f"--out={out}", *given])
        err = capsys.readouterr().err
        return Flags.read(out) if code == 0 else err

    return call


def rows(path, *kinds):
    """Thirty rows, of these kinds in turn."""
    made = []
    for n in range(30):
        text = f"the prompt {n}"
        chat = {"messages": [{"role": "user", "content": text}]}
        made.append(chat if kinds[n % len(kinds)] == "chat" else {"prompt": text})
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_real_parts(score, calibrate, tmp_path):
    score(rows(tmp_path / "chats.jsonl", "chat"), out="chats", rows_per_file=7)
    score(rows(tmp_path / "texts.jsonl", "text"), out="texts")
    part = pq.read_metadata(next((tmp_path / "chats").glob("part-*"))).metadata
    template = part[b"tuco.chat_template_sha256"].decode()
    flags = calibrate("chats", "texts", buckets=1)
    assert set(flags.templates) == {template, None}
    assert (flags.ft_fingerprint, flags.dtype) == (part[b"tuco.ft_fingerprint"].decode(), "float32")
    for name, form in (("chats", template), ("texts", None)):
        scored = pq.read_table(tmp_path / name).to_pylist()
        flagged = [flags.flagged(form, row["prompt_tokens"], row["tuco"]) for row in scored]
        assert (len(flagged), sum(flagged)) == (30, 2)  # floor(0.1 * 31) - 1


def test_a_part_that_mixes_forms_is_refused(score, calibrate, tmp_path):
    score(rows(tmp_path / "mixed.jsonl", "text", "chat"), out="mixed")
    assert "has prompts with a chat template and prompts without" in calibrate("mixed")
