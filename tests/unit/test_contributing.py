"""CONTRIBUTING tells three ways through the code, in eight steps each: its files exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAYS = re.findall(
    r"^### ([^\n]*)\n\n(.*?)(?=^##)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
)


def test_there_are_three() -> None:
    assert len(WAYS) == 3


@pytest.mark.parametrize(("title", "story"), WAYS, ids=[title for title, _ in WAYS])
def test_a_way_has_eight_steps_whose_files_exist(title: str, story: str) -> None:
    steps = re.split(r"^(\d)\. ", story, flags=re.MULTILINE)[1:]
    assert steps[::2] == list("12345678")
    for step in steps[1::2]:
        files = re.findall(r"`([\w/]+\.py)`", step)
        assert files, step
        assert not [file for file in files if not (ROOT / file).is_file()], step


def test_files_of_the_table_exist() -> None:
    """Where things are: by their last names, for rows that say a folder once."""
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2].partition("\n\n**")[0]
    names = {
        path.name for top in ("tuco_vllm", "kernels", "tests", "bench") for path in (ROOT / top).rglob("*")
    }
    mentioned = re.findall(r"`([\w/]+\.py)`", table)
    assert len(mentioned) > 30
    assert not [name for name in mentioned if name.rpartition("/")[2] not in names]
