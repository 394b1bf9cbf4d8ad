"""The paper's prompt sets, from files as users have them, by the demo pair's tokenizer."""

import gzip
import json
import os
from collections import Counter
from itertools import pairwise

import pytest

import tuco_vllm
from tuco_vllm import cli
from tuco_vllm.demo import FT, PT
from tuco_vllm.errors import EngineError
from tuco_vllm.prompts import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FT)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Run `tuco build`; returns the rows of its file."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        assert cli.main(["build", *map(str, arguments), "--out=built.jsonl", "--overwrite"]) == code
        if code:
            return None
        return [json.loads(line) for line in (tmp_path / "built.jsonl").read_text().split("\n") if line]

    return call


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def count(tokenizer, row):
    text = row["prompt"] if "prompt" in row else row["messages"][0]["content"]
    return len(tokenizer(text)["input_ids"])


def test_windows_are_so_many_tokens_as_scored(build, tokenizer, tmp_path):
    odd = "ünïcödé 🙂 and\r\nlines\u2028too.  Two  spaces; "
    documents = ["The sea was calm that day, and nobody spoke. " * 80, odd * 60, "short", "", "x" * 900]
    (tmp_path / "a.txt").write_text("\n<|doc|>\n".join(documents), newline="")
    rows = build("windows", "a.txt", f"--model={FT}", "--separator=<|doc|>", "--tokens=40")
    assert {count(tokenizer, row) for row in rows} == {40}
    assert len({row["id"] for row in rows}) == len(rows)
    of = Counter(row["id"].rpartition(":")[0] for row in rows)
    assert of["a.txt:0"] > 10
    assert "a.txt:2" not in of
    whole = "\n".join(documents)
    assert all(row["prompt"] in whole for row in rows)
    few = build("windows", "a.txt", f"--model={FT}", "--separator=<|doc|>", "--tokens=40", "--limit=3")
    assert len({row["id"].rpartition(":")[0] for row in few}) == 3, "spread over the documents"
    assert few == rows[:3]
    assert build("windows", "a.txt", f"--model={FT}", "--separator=<|doc|>", "--limit=3", "--seed=1") != few
    build("windows", "a.txt", f"--model={FT}", "--tokens=9999999", code=2)


def test_windows_of_a_document_do_not_overlap(build, tokenizer, tmp_path):
    words = " ".join(f"w{n}" for n in range(900))
    (tmp_path / "a.txt").write_text(words)
    rows = build("windows", "a.txt", f"--model={FT}", "--tokens=30")
    spans = sorted((words.index(row["prompt"]), len(row["prompt"])) for row in rows)
    assert len(spans) > 20
    assert all(start + length <= after for (start, length), (after, _) in pairwise(spans))


def test_templates(build, tmp_path):
    (tmp_path / "b.csv").write_text('prompt,id\n"NA",x\n"say ""{0}""\nnow",y\n')
    (tmp_path / "t.csv").write_text("template\nDo [INSERT PROMPT HERE] and [INSERT PROMPT HERE]!\n")
    rows = build("templates", "b.csv", "--templates=t.csv", "--id-column=id")
    assert [row["messages"][0]["content"] for row in rows] == [
        "Do NA and NA!",
        'Do say "{0}"\nnow and say "{0}"\nnow!',
    ]
    assert [(row["behaviour"], row["group"]) for row in rows] == [
        ("x", "attack:template"),
        ("y", "attack:template"),
    ]
    raw = build("templates", "b.csv", "--templates=t.csv", "--raw", "--group=control:template", "--limit=1")
    assert raw[0].keys() >= {"prompt", "template"}
    assert [row["group"] for row in raw] == ["control:template"]
    (tmp_path / "t.csv").write_text("template\nno slot\n")
    build("templates", "b.csv", "--templates=t.csv", code=2)


@pytest.fixture
def pairs(tmp_path):
    return jsonl(tmp_path / "p.jsonl", [{"prompt": f"q{n}", "target": f"a{n}"} for n in range(12)])


def test_shots_are_nested_and_never_the_prompt_itself(build, pairs):
    rows = build("many-shot", pairs, "--shots=1,2,8", "--limit=4")
    assert [row["shots"] for row in rows] == [1, 2, 8] * 4
    for one, two, eight in (rows[start : start + 3] for start in range(0, 12, 3)):
        assert len(eight["messages"]) == 17
        assert one["messages"][:2] == two["messages"][:2]
        assert two["messages"][:4] == eight["messages"][:4]
        assert one["messages"][-1] == eight["messages"][-1]
        asked = [turn["content"] for turn in eight["messages"] if turn["role"] == "user"]
        assert len(set(asked)) == 9
        answers = [turn["content"] for turn in eight["messages"] if turn["role"] == "assistant"]
        assert answers == [question.replace("q", "a") for question in asked[:-1]]
    text = build("many-shot", pairs, "--shots=2", "--form=text", "--limit=1")[0]["messages"]
    assert len(text) == 1
    assert text[0]["content"].startswith("User: q")
    assert text[0]["content"].endswith("\n\nAssistant:")
    build("many-shot", pairs, "--shots=12", code=2)


def test_documents_are_parted_whatever_ends_their_lines(build, tmp_path):
    text = "<|doc|>\n".join(f"w{n} said that the sea was calm.\n" for n in range(3))
    for name, data in (("a.txt", text), ("b.txt", text.replace("\n", "\r\n"))):
        (tmp_path / name).write_text(data, newline="")
        rows = build("windows", name, f"--model={FT}", "--separator=<|doc|>", "--tokens=6")
        assert {row["id"].split(":")[1] for row in rows} == {"0", "1", "2"}
        assert not any("<|" in row["prompt"] for row in rows)


def test_ids_that_repeat_are_refused(build, tmp_path, capsys):
    jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}])
    build("refusal-shots", "x.jsonl", "--shots=0", "--id-column=id", code=2)
    assert "is there twice" in capsys.readouterr().err
    assert len(build("refusal-shots", "x.jsonl", "--shots=0")) == 2


def test_refusal_shots(build, pairs):
    assert len(build("refusal-shots", pairs, "--limit=2")) == 10
    rows = build("refusal-shots", pairs, "--shots=0,3")
    assert len(rows[0]["messages"]) == 1
    assert rows[0]["messages"][0] == rows[1]["messages"][-1]
    assert "sorry" in rows[1]["messages"][1]["content"]


def test_languages_are_parallel(build, tmp_path, capsys):
    rows = [{"id": n, "lang": lang, "prompt": f"{lang}{n}"} for n in range(4) for lang in ("en", "sw", "xx")]
    del rows[4]  # 1 has no sw
    found = build("languages", jsonl(tmp_path / "l.jsonl", rows), "-l", "high=en", "-l", "low=sw")
    assert [(row["id"], row["group"]) for row in found] == [
        (f"{n}:{lang}", group) for n in (0, 2, 3) for lang, group in (("en", "high"), ("sw", "low"))
    ]
    assert "1 prompts are not there in all languages" in capsys.readouterr().err
    build("languages", "l.jsonl", "-l", "en", code=2)
    build("languages", "l.jsonl", "-l", "a=en", "-l", "b=en", code=2)


def test_controls_are_as_long_as_the_attack(build, tokenizer, tmp_path):
    attacked = [
        {"goal": f"Make thing {n}", "prompt": f"Make thing {n} " + "describing.+ similarlyNow " * n}
        for n in range(1, 9)
    ]
    pool = [{"prompt": "Tell me about the sea and the wind. " * n} for n in range(1, 20)]
    jsonl(tmp_path / "a.jsonl", attacked), jsonl(tmp_path / "pool.jsonl", pool)
    sizes = {f"a.jsonl:{n}": len(tokenizer(row["prompt"])["input_ids"]) for n, row in enumerate(attacked)}
    rows = build("length-control", "a.jsonl", "--pool=pool.jsonl", f"--model={FT}")
    assert {row["behaviour"]: row["tokens_wanted"] for row in rows} == sizes
    assert all(row["tokens"] == row["tokens_wanted"] == count(tokenizer, row) for row in rows)
    assert len({row["control"] for row in rows}) == 8
    rows = build("suffix-control", "a.jsonl", f"--model={FT}", "--raw")
    assert {row["behaviour"]: row["tokens_wanted"] for row in rows} == sizes
    for row, one in zip(rows, attacked, strict=True):
        assert row["prompt"].startswith(one["goal"])
        assert "similarlyNow" not in row["prompt"]
        assert 0 <= count(tokenizer, row) - row["tokens_wanted"] <= 3
    build("length-control", "a.jsonl", "--pool=a.jsonl", f"--model={FT}")
    chats = [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in attacked]
    again = build(
        "length-control", jsonl(tmp_path / "chats.jsonl", chats), "--pool=pool.jsonl", f"--model={FT}"
    )
    assert [row["tokens"] for row in again] == sorted(sizes.values(), reverse=True)
    jsonl(tmp_path / "short.jsonl", [{"prompt": "Hi."}] * 20)
    build("length-control", "a.jsonl", "--pool=short.jsonl", f"--model={FT}", code=2)
    jsonl(tmp_path / "few.jsonl", pool[:3])
    build("length-control", "a.jsonl", "--pool=few.jsonl", f"--model={FT}", code=2)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.jsonl", b'{"prompt": "a"}\nno json\n', "x.jsonl:1 is not JSON"),
        ("x.jsonl", b"[1]\n", "x.jsonl:0 is no object"),
        ("x.jsonl", b'{"prompt": ""}\n', "x.jsonl:0 needs a text in column 'prompt'"),
        ("x.jsonl", b'{"text": "a"}\n', "there is none: name the column"),
        ("x.csv", b"prompt,b\n1,2\n3\n", "x.csv:1 has not as many fields"),
        ("x.csv", b"prompt\n\xff\n", "cannot read"),
        ("x.jsonl.gz", b"no gzip", "cannot read"),
        ("x.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03broken", "cannot read"),
        ("x.parquet", b"", "is neither .csv nor .jsonl"),
        ("x.jsonl", b"", "there is nothing to write"),
        ("x.jsonl", b'{"prompt": "a \\ud800"}\n', "x.jsonl:0: the text in column 'prompt' holds a lone"),
    ],
)
def test_bad_input_is_named_and_what_was_there_stays(build, tmp_path, capsys, name, data, said):
    (tmp_path / "built.jsonl").write_text("before")
    (tmp_path / name).write_bytes(data)
    build("refusal-shots", name, "--shots=0", code=2)
    assert said in capsys.readouterr().err
    assert (tmp_path / "built.jsonl").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"built.jsonl", name})


def test_nothing_is_replaced_unasked(tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    data = tmp_path / "x.jsonl.gz"
    data.write_bytes(gzip.compress(b'{"prompt": "a\\u2028b"}\n'))
    assert cli.main(["build", "refusal-shots", str(data), f"--out={out}", "--shots=0"]) == 0
    assert json.loads(out.read_text())["messages"][0]["content"] == "a\u2028b"
    assert cli.main(["build", "refusal-shots", str(data), f"--out={out}", "--shots=0"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_nothing_takes_the_place_of_a_pipe(tmp_path, capsys):
    data = jsonl(tmp_path / "x.jsonl", [{"prompt": "a"}])
    os.mkfifo(tmp_path / "pipe")
    command = ["build", "refusal-shots", str(data), f"--out={tmp_path / 'pipe'}", "--shots=0", "--overwrite"]
    assert cli.main(command) == 2
    assert "name a file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_outcomes_stay_until_an_engine_has_started(tmp_path, monkeypatch, capsys):
    def no_engine(*_, **__):
        raise EngineError("no engine today")

    monkeypatch.setattr(tuco_vllm, "TucoLLM", no_engine)
    data, out = jsonl(tmp_path / "x.jsonl", [{"prompt": "a"}]), tmp_path / "o.jsonl"
    out.write_text("what eight hours of sampling gave\n")
    command = ["build", "outcomes", str(data), f"--pt={PT}", f"--ft={FT}", "--overwrite"]
    assert cli.main([*command, f"--out={out}"]) == 3
    assert out.read_text() == "what eight hours of sampling gave\n"
    assert cli.main([*command, f"--out={tmp_path}"]) == 2
    assert "is a folder: name a file" in capsys.readouterr().err
