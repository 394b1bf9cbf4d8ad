"""The death of a process at a step, simulated within it: from there on none of its calls reaches the disk."""

import json
import os

FAULTS = ("fsync", "link", "replace", "unlink")
"""Calls of the local store that make something durable, or take it away."""


class Killed(BaseException):
    """The process is gone."""


def kill_at(monkeypatch, step):
    """Die before call number ``step`` of FAULTS, from 0; returns the calls made, as they grow."""
    calls = []
    for name in FAULTS:
        real = getattr(os, name)

        def fake(*arguments, name=name, real=real, **options):
            calls.append(name)
            if len(calls) > step:
                raise Killed
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, fake)
    return calls


def heartbeats_of_the_dead(out):
    """The process that 'died' is this one, and lives: its heartbeats must not say so."""
    for path in (out / "_tuco").glob("heartbeat-*"):
        said = json.loads(path.read_text() or "{}")
        path.write_text(json.dumps(said | {"pid": 2**22 + 1}))
    for path in (out / "_tuco/epoch").glob("*"):
        said = json.loads(path.read_text() or "{}")
        path.write_text(json.dumps(said | {"pid": 2**22 + 1}))
