"""How an engine's steps run: from a command's options to vLLM's arguments."""

import argparse

import pytest

from tuco_vllm.commands import score, sweep
from tuco_vllm.commands.options import STEPS, engine_arguments

GIVEN = [
    ((), {}),
    (
        ("--max-num-batched-tokens", "512", "--max-num-seqs", "4"),
        {"max_num_batched_tokens": 512, "max_num_seqs": 4},
    ),
    (("--async-scheduling",), {"async_scheduling": True}),
    (("--no-async-scheduling",), {"async_scheduling": False}),
    (("--cudagraph-mode", "PIECEWISE"), {"compilation_config": {"cudagraph_mode": "PIECEWISE"}}),
]


@pytest.mark.parametrize("command", [score, sweep])
@pytest.mark.parametrize(("flags", "arguments"), GIVEN)
def test_what_is_asked_reaches_the_engine_and_nothing_else(command, flags, arguments):
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    needed = ["in", "--pt=p", "--ft=f", "--out=o", *(["--dataset=jsonl"] if command is sweep else [])]
    assert engine_arguments(parser.parse_args([*needed, *flags]), *STEPS) == arguments


@pytest.mark.parametrize("wrong", ["--max-num-seqs=0", "--max-num-batched-tokens=x", "--cudagraph-mode=FULL"])
def test_what_cannot_be_is_refused(wrong, capsys):
    parser = argparse.ArgumentParser()
    score.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["in", "--pt=p", "--ft=f", "--out=o", wrong])
    assert wrong.partition("=")[0] in capsys.readouterr().err
