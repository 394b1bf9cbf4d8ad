"""The layout is the architecture: who may import whom, read from the sources' syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NOT_IMPORTED_BY = {
    "records": ("torch", "engine", "api", "corpus", "server", "cli", "commands", "analysis"),
    "metrics": ("torch", "engine", "api", "corpus", "server", "cli", "commands", "analysis"),
    "decomposition": ("engine", "api", "corpus", "server", "cli", "commands", "analysis"),
    "config": ("torch", "engine", "api", "corpus", "server", "cli", "commands", "analysis"),
    "families": ("torch", "config", "engine", "api", "corpus", "server", "cli", "commands", "analysis"),
    "engine": ("api", "corpus", "server", "cli", "commands", "analysis"),
    "api": ("corpus", "server", "cli", "commands", "analysis"),
    "store": ("torch", "config", "engine", "api", "corpus", "server", "cli", "commands", "analysis"),
    "sweep": ("torch", "engine", "corpus", "server", "cli", "commands", "analysis"),
    "builders": ("torch", "engine", "corpus", "server", "cli", "commands", "analysis"),
    "commands": ("cli",),
    "corpus": ("server", "cli", "commands", "analysis"),
    "server": ("corpus", "cli", "commands", "analysis"),
    "analysis": ("torch", "engine", "api", "corpus", "server", "cli", "commands"),
}
"""Arrows point one way: decomposition, records <- engine <- api <- corpus, server, sweep, builders
<- commands, and
records <- store <- corpus, analysis <- commands <- cli. Parquet is the only link from running to analysis."""

PUBLIC_VLLM = {
    "LLM",
    "LLMEngine",
    "EngineArgs",
    "AsyncEngineArgs",
    "ModelRegistry",
    "SamplingParams",
    "PoolingParams",
    "RequestOutput",
    "CompletionOutput",
    "PoolingRequestOutput",
    "TokensPrompt",
    "__version__",
}
"""What engine/ may import outside compat.py: names that vLLM exports at its top level."""


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports anywhere in it, ``from a import b`` as ``a.b``, and their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)


def part_of(path: Path) -> str:
    """tuco_vllm/engine/rows.py -> engine; tuco_vllm/records.py -> records."""
    return path.parts[1].removesuffix(".py")


def broken_rule(path: Path, name: str) -> str | None:
    """Why the module at ``path`` (relative to the root) may not import ``name``, or None."""
    package, *rest = name.split(".")
    if not package:
        return "imports are absolute here"
    if path.parts[0] == "kernels":
        allowed = {"torch", "triton", "tuco_kernels", *sys.stdlib_module_names}
        return None if package in allowed else "kernels import torch and triton only"
    if package == "vllm":
        if part_of(path) != "engine":
            return "only tuco_vllm/engine imports vllm"
        if path.name == "plugin.py" and name == "vllm.model_executor.models.config.MODELS_CONFIG_MAP":
            return None  # compat.py imports half of vLLM; every vLLM process runs the plugin
        if path.name != "compat.py" and rest and (len(rest) > 1 or rest[0] not in PUBLIC_VLLM):
            return "private parts of vllm are imported in engine/compat.py only"
    target = rest[0] if package == "tuco_vllm" and rest else package
    if target in NOT_IMPORTED_BY.get(part_of(path), ()):
        return f"{part_of(path)} does not import {target}"
    return None


def sources() -> list[Path]:
    return [path.relative_to(ROOT) for top in ("tuco_vllm", "kernels") for path in (ROOT / top).rglob("*.py")]


def test_the_tree_keeps_the_rules():
    broken = [
        f"{path}:{line}: {name}: {rule}"
        for path in sources()
        for name, line in imports(ast.parse((ROOT / path).read_text()))
        if (rule := broken_rule(path, name))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "line", "allowed"),
    [
        ("tuco_vllm/engine/rows.py", "from vllm import SamplingParams", True),
        ("tuco_vllm/engine/rows.py", "import vllm", True),
        ("tuco_vllm/engine/rows.py", "import vllm.v1.core", False),
        ("tuco_vllm/engine/rows.py", "from vllm import envs", False),
        ("tuco_vllm/engine/stock_models.py", "from vllm.config import VllmConfig", False),
        ("tuco_vllm/engine/compat.py", "from vllm.config import VllmConfig", True),
        ("tuco_vllm/api.py", "def f():\n    from vllm import LLM", False),
        ("tuco_vllm/api.py", "from tuco_vllm.engine import plugin", True),
        ("tuco_vllm/analysis/tables.py", "import torch", False),
        ("tuco_vllm/analysis/tables.py", "from tuco_vllm import api", False),
        ("tuco_vllm/analysis/tables.py", "from tuco_vllm.records import LAYERS", True),
        ("tuco_vllm/engine/plugin.py", "import tuco_vllm.api", False),
        ("tuco_vllm/engine/plugin.py", "from . import compat", False),
        ("tuco_vllm/corpus/job.py", "from tuco_vllm.cli import main", False),
        ("tuco_vllm/store/local.py", "from tuco_vllm.corpus import job", False),
        ("tuco_vllm/analysis/tables.py", "from tuco_vllm.store import store_at", True),
        ("tuco_vllm/cli.py", "from tuco_vllm.corpus import job", True),
        ("kernels/tuco_kernels/norm.py", "import torch, math", True),
        ("kernels/tuco_kernels/norm.py", "import numpy", False),
    ],
)
def test_the_rules_tell_right_from_wrong(path, line, allowed):
    broken = [broken_rule(Path(path), name) for name, _ in imports(ast.parse(line))]
    assert (not any(broken)) == allowed


def test_public_names_are_vllms_own():
    import vllm

    assert set(vllm.__all__) >= PUBLIC_VLLM


def test_every_module_has_one_purpose_to_be_named_for():
    drawers = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert not [str(path) for path in sources() if path.name in drawers]


def test_files_and_functions_are_small():
    """A file has one purpose and is under 300 lines, a function under 60, tests and benchmarks included."""
    large = []
    for path in (
        path for top in ("tuco_vllm", "kernels", "tests", "bench") for path in (ROOT / top).rglob("*.py")
    ):
        text, name = path.read_text(), path.relative_to(ROOT)
        if (lines := len(text.splitlines())) >= 300:
            large.append(str(name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines >= 60:
                    large.append(f"{name}: {node.name}")
    assert not large, "\n".join(large)


def test_every_package_folder_is_a_package():
    folders = {path.parent for path in sources()} - {Path("kernels")}
    assert not [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()]


@pytest.mark.parametrize(
    "module",
    [
        *("tuco_vllm", "tuco_vllm.records", "tuco_vllm.metrics", "tuco_vllm.config", "tuco_vllm.families"),
        *("tuco_vllm.prompts", "tuco_vllm.corpus.actor"),
    ],
)
def test_light_modules_load_neither_torch_nor_vllm(module):
    # Every vLLM process of an environment imports the package through its plugin, and of a job's processes
    # most need neither.
    code = f"import sys, {module}; print(sorted({{'torch', 'vllm', 'transformers'}} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"
