"""Every block of README runs for a new user and prints what it says; what is not run is skipped by name."""

import re
import time
from pathlib import Path

import pytest
import tolerances
from readme.blocks import README, Block, Command, blocks_of, difference
from readme.new_user import BASE, NewUser, place_adapter, recipe
from tiny_adapters import make_adapter

BLOCKS = blocks_of(README.read_text())
FRONT = ("Two commands", "Six lines")
"""What of README `make test` runs; the recipes are slow, an engine each."""


@pytest.fixture(scope="module")
def user(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewUser:
    """Who has run all that are asked for."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    asked = [item.callspec.params["block"].name for item in items if "user" in item.fixturenames]
    home, directory = (tmp_path_factory.mktemp(name) for name in ("home", "directory"))
    made = make_adapter(BASE, tmp_path_factory.mktemp("adapter"), seed=51)
    place_adapter(made.adapter, directory)
    user = NewUser(home, directory)
    started = time.monotonic()
    user.run([block for block in BLOCKS if block.name in asked])
    print(f"README's blocks took {time.monotonic() - started:.0f} s")
    return user


@pytest.mark.engine
@pytest.mark.parametrize(
    "block",
    [pytest.param(b, marks=[] if b.name.startswith(FRONT) else pytest.mark.slow, id=b.name) for b in BLOCKS],
)
def test_a_block_prints_what_it_says(block: Block, user: NewUser) -> None:
    if block.skipped is not None:
        pytest.skip(block.skipped)
    for command, ran in zip(block.commands, user.ran[block.name], strict=True):
        assert ran.code == 0, f"{command.text}\n{ran.out[-1500:]}\n{ran.err[-3000:]}"
        if command.printed or block.kind == "console":
            wrong = difference(ran.out, command.printed, tolerances.README_DECIMALS)
            assert wrong is None, f"{command.text}\n{wrong}\n--- all of it:\n{ran.out}"


def test_at_most_three_numbers_are_claimed_up_front() -> None:
    """Each with its record; the rest is in bench/README.md."""
    claims = README.read_text().partition("\n- **")[2].partition("\n\n")[0].split("\n- **")
    assert len(claims) == 3
    assert all("(bench/results/" in claim for claim in claims)


def test_links_lead_to_files() -> None:
    for page in (README, *README.parent.glob("tuco_vllm/*/README.md"), README.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", page.read_text()):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    ("printed", "stated", "same"),
    [
        ("a 0.51 b\n", "a 0.50 b\n", True),
        ("a 0.56 b\n", "a 0.50 b\n", False),
        ("a 3 b\n", "a 4 b\n", False),
        ("a\nx y\nz 12 s\n", "a\n...\nz ... s\n", True),
        ("a\nx y\n", "a\n", False),
        ("", "a\n", False),
        ("a   \n", "a\n", True),
        ("v1.2.3 of 0.5\n", "v1.2.4 of 0.5\n", False),
        ("(0.12) [0.3, 0.4]\n", "(0.12) [0.3, 0.4]\n", True),
        ("(0.12) [0.3, 0.9]\n", "(0.12) [0.3, 0.4]\n", False),
    ],
)
def test_outputs_are_compared(printed: str, stated: str, same: bool) -> None:
    assert (difference(printed, stated, 0.05) is None) == same


SAMPLE = """# One
```console
$ PT=a
$ run
out
more
```
<!-- not run: no network -->
```console
$ fetch
```
**Two**

```python
print(1)
```

```text
1
```
<!-- serves: more -->
```console
$ serve
```
"""


def test_blocks_are_found() -> None:
    one, two, three, four = blocks_of(SAMPLE)
    assert one.commands == [Command("PT=a"), Command("run", "out\nmore\n")]
    assert (one.name, two.name, three.name, four.name) == ("One 1", "One 2", "Two 1", "Two 2")
    assert (two.skipped, four.skipped, four.serves) == ("no network", None, True)
    assert three.commands == [Command("print(1)\n", "1\n")]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("# A\n```sh\nls\n```\n", "of the kind 'sh'"),
        ("# A\n```text\n1\n```\n", "no script prints this"),
        ("# A\n<!-- x -->\n```console\n$ a\n```\n", "says nothing to the test"),
        ("# A\n```console\nls\n```\n", "output without a command"),
    ],
)
def test_a_block_that_nobody_can_run_is_an_error(broken: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        blocks_of(broken)


def test_make_targets_are_their_recipes() -> None:
    assert recipe("make demo") == ["tuco demo"]
    assert recipe("tuco doctor") == ["tuco doctor"]
    assert Path(BASE).is_dir()
