"""A reader that has left, as rich tells of it."""

import io
import os
import sys

from rich.console import Console

from tuco_vllm import cli
from tuco_vllm.commands import status


def test_what_rich_makes_of_a_reader_that_left_is_no_row_error(monkeypatch):
    def gone(_):
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            Console(file=io.StringIO()).on_broken_pipe()

    monkeypatch.setattr(os, "dup2", lambda *_: None)  # rich closes stdout, which is pytest's
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    monkeypatch.setattr(status, "run", gone)
    assert cli.main(["status", "out"]) == 141
