"""The image of `tuco serve`, as far as it can be looked at without a registry: what it copies and starts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tuco_vllm

ROOT = Path(__file__).parents[2]
KNOWN = {"ARG", "FROM", "COPY", "RUN", "EXPOSE", "ENTRYPOINT"}


@pytest.fixture(scope="module")
def instructions():
    """(instruction, argument) of each, in order."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def argument(instructions, name):
    [found] = [text for instruction, text in instructions if instruction == name]
    return found


def test_the_instructions_are_docker_s_and_in_order(instructions):
    names = [name for name, _ in instructions]
    assert set(names) == KNOWN
    assert names[:2] == ["ARG", "FROM"]
    assert names[-1] == "ENTRYPOINT"


def test_the_base_is_a_vllm_that_the_package_knows(instructions):
    name, _, image = argument(instructions, "ARG").partition("=")
    assert argument(instructions, "FROM") == f"${{{name}}}"
    assert image.rpartition(":v")[2].startswith(tuco_vllm.SUPPORTED_VLLM)


def test_what_the_package_needs_is_copied_and_there(instructions):
    copied = [text.split()[:-1] for name, text in instructions if name == "COPY"]
    names = {each for sources in copied for each in sources}
    assert names == {"pyproject.toml", "README.md", "LICENSE", "kernels", "tuco_vllm"}
    assert all((ROOT / name).exists() for name in names)


def test_the_entry_point_is_the_server(instructions):
    script, *arguments = json.loads(argument(instructions, "ENTRYPOINT"))
    command = [str(Path(sys.executable).with_name(script)), *arguments]
    said = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--pt" in said
    refused = subprocess.run(
        [*command, "--ft", "nowhere/at/all"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("tuco: error: ")
