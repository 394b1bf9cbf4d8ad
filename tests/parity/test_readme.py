"""What README tells a new user to copy works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize(
    "eager",
    [True, pytest.param(False, marks=pytest.mark.slow)],  # two minutes to compile six layers of two models
    ids=["eager", "as it stands there"],
)
def test_the_first_python_block_runs(eager: bool, tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    script = tmp_path / "first.py"
    code = block[1].replace("ft=FT)", "ft=FT, enforce_eager=True)") if eager else block[1]
    assert ("enforce_eager" in code) == eager
    # What shap, umap or librosa bring: vLLM would neither start nor end its engine in such a process
    # (plugin.py, death_watch.py).
    script.write_text("import numba\n" + code)
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    scores = [float(tuco) for tuco in re.findall(r"^TuCo (\d\.\d+),", run.stdout, re.MULTILINE)]
    assert len(scores) == 2
    assert scores[1] > scores[0] + 0.05  # a chat owes more to fine-tuning than a line of a novel
