"""``tuco doctor`` of a pair, whole: its engines, its reference from disk, what it prints."""

import json
import re

from engines import in_this_process

from tuco_vllm.doctor import run_doctor


def test_a_pair_is_examined(pair_dirs, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"the cat sat on mat {n}, and then " * n} for n in range(1, 9)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    with in_this_process():
        assert run_doctor(*pair_dirs("llama", "float32"), prompts) == 0
    said = capsys.readouterr().out
    assert "Scoring 8 prompts of prompts.jsonl" in said
    assert re.search(r"In bfloat16 with float32 rows a score of this pair is off by \d\.\de-0[2-5] ", said)
    assert "alpha = 1 is FT, token by token: holds" in said
    assert "alpha = 0 is PT's layers: holds" in said
    error = re.search(r"x_L = x_0 \+ P \+ F in the reference, to (\S+)", said)
    assert float(error[1]) < 1e-6


def test_a_pair_without_fine_tuning_has_no_alpha_to_tell(pair_dirs, tmp_path, monkeypatch, capsys) -> None:
    """FT with itself: all tensors equal, and alpha 0 and 1 are one stream."""
    monkeypatch.setenv("COLUMNS", "300")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat sat on the mat\n")
    _, ft = pair_dirs("llama", "float32")
    with in_this_process():
        assert run_doctor(ft, ft, prompts) == 0
    said = capsys.readouterr().out
    assert re.search(r"(\d+) of \1 tensors are equal in both", said)
    assert "CANNOT BE TOLD" in said
