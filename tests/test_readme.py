"""What the README says is true: its recipe loads, its commands exist, its method table and tree are those of the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from qkd import recipe as recipes
from qkd.cli.main import commands
from qkd.distill.method_info import method_info
from qkd.methods import METHODS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def table() -> str:
    """The method table, from what each method says of itself."""
    rows = ["| method | in a sentence | paper | needs |", "| --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        known = method_info(method)
        assert known is not None, name
        line = (method.__doc__ or "").strip().splitlines()[0].removesuffix(".")
        rows.append(f"| `{name}` | {line} | {known.paper} | {known.needs} |")
    return "\n".join(rows)


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README.read_text(), re.S)
    assert found is not None, name
    return found.group(1)


def test_method_table_is_generated(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite-golden"):
        start, rest = README.read_text().split("<!-- methods -->")
        README.write_text(f"{start}<!-- methods -->\n{table()}\n<!-- /methods -->{rest.split('<!-- /methods -->')[1]}")
    assert block("methods") == table()


def test_the_recipe_shown_is_the_one_of_the_demo(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", README.read_text(), re.S)
    assert shown is not None
    path = tmp_path / "shown.yaml"
    path.write_text(shown.group(1))
    assert recipes.load(path) == recipes.load("digits_cmtkd_w2a2")


def test_every_command_named_exists_and_every_command_is_named() -> None:
    named = set(re.findall(r"`qkd ([a-z]+)", README.read_text())) | set(
        re.findall(r"^qkd ([a-z]+)", README.read_text(), re.M)
    )
    assert named == set(commands.commands)


def test_every_recipe_named_exists() -> None:
    for path in re.findall(r"recipes/[\w.]+\.yaml", README.read_text()):
        assert (ROOT / path).is_file(), path


def test_the_tree_is_that_of_the_folders() -> None:
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README.read_text(), re.S)
    assert tree is not None
    names = [re.match(r"( *)([\w]+)/", line) for line in tree.group(1).splitlines()]
    shown = {(f"qkd/{name.group(2)}" if name.group(1) else name.group(2)) for name in names if name}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    rooms = {"/".join(path.split("/")[:2]) for path in tracked if path.startswith("qkd/") and path.count("/") > 1}
    assert shown == folders | rooms


def test_both_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z]+)", README.read_text())) <= targets
