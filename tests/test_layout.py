"""The project is as ARCHITECTURE.md says: its rooms and files, imports, no method in the engine, error keys, one version."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qkd
from qkd.errors import QkdError
from qkd.methods import METHODS

ROOT = Path(__file__).parent.parent
ROOMS = {"qkd.quantizers": "quantizers", "qkd.export": "export", "qkd.recipes": "recipes"}
SOURCES = sorted(
    p for room in ("qkd", "quantizers", "export") for p in (ROOT / room).rglob("*.py") if not p.is_symlink()
)


def _own_sources() -> list[Path]:
    links = {ROOT / "qkd" / room for room in ROOMS.values()}
    return [p for p in SOURCES if not links & set(p.parents)]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def test_every_folder_with_code_is_a_listed_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in _own_sources() if p.name == "__init__.py"}
    expected = {f if f.startswith("qkd") else f"qkd.{f}" for f in folders} | {"qkd.recipes"}
    assert listed == expected


@pytest.mark.parametrize("room", sorted(ROOMS.values()))
def test_rooms_are_linked_relatively(room: str) -> None:
    link = ROOT / "qkd" / room
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{room}"


ENGINE = (
    *sorted((ROOT / "qkd/engine").glob("*.py")),
    *sorted((ROOT / "qkd/assembly").glob("*.py")),
    ROOT / "qkd/distill/plan.py",
)


@pytest.mark.parametrize("file", ENGINE, ids=lambda path: path.stem)
def test_the_engine_names_no_method(file: Path) -> None:
    tree = ast.parse(file.read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not (words | names) & set(METHODS)


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("brevitas", ("quantizers", "export")),
        ("onnx", ("export",)),
        ("onnxruntime", ("export",)),
        ("yaml", ("qkd/recipe",)),
        ("pydantic", ("qkd/recipe",)),
    ],
)
def test_a_library_stays_in_its_room(package: str, rooms: tuple[str, ...]) -> None:
    for path in _own_sources():
        where = str(path.relative_to(ROOT))
        if not where.startswith(rooms):
            assert not {i for i in _imports(path) if i.split(".")[0] == package}, where


def test_nothing_is_unpickled_or_evaluated() -> None:
    for path in _own_sources():
        text = path.read_text()
        assert not re.search(
            r"^\s*(import|from) pickle|\byaml\.(load|unsafe_load)\(|(?<![.\w])eval\(|\bexec\(", text, re.M
        ), path
        for call in re.findall(r"torch\.load\(([^\n]*)", text):
            assert "weights_only=True" in call, path


def test_no_test_imports_another_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        found = {name for name in _imports(path) if re.search(r"^tests\..*\btest_\w+$", name)}
        assert not found, path


def test_tests_stand_in_folders_like_the_code() -> None:
    rooms = {p.name for p in (ROOT / "qkd").iterdir() if p.is_dir()} | {"support", "benchmarks", "golden"}
    assert {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name != "__pycache__"} <= rooms


def test_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert changelog is not None
    assert qkd.__version__ == project["version"] == changelog.group(1)


def test_help_answers_without_torch() -> None:
    code = "import sys, qkd.cli.main; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_stay_small() -> None:
    long = {str(p.relative_to(ROOT)): n for p in _own_sources() if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_the_rooms_are_those_of_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("<!-- rooms -->")[1].split("<!-- /rooms -->")[0]
    listed = re.findall(r"^\| `([\w/]+)/` \|", table, re.M)
    packages = {str(p.parent.relative_to(ROOT)) for p in _own_sources() if p.name == "__init__.py"} - {"qkd"}
    assert set(listed) == packages and len(listed) == len(packages)


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "CHANGELOG.md"])
def test_every_file_that_is_named_exists(document: str) -> None:
    names = re.findall(r"`([\w./-]+\.(?:py|c|md|yaml|json|cfg|toml))`", (ROOT / document).read_text())
    inside = [name for name in names if "/" in name and not name.startswith((".", "~"))]
    assert not [name for name in inside if not (ROOT / name).exists()]


def test_the_package_has_at_most_twenty_names() -> None:
    names = sorted(p.name for p in (ROOT / "qkd").iterdir() if p.name != "__pycache__")
    assert len(names) <= 20, names


RETIRED = {
    *("foresee", "unheard", "inscription", "lattice", "passages", "members", "stitch", "surveys", "anchors", "chances"),
    *("reopen", "produce", "ship", "measure", "score", "likeness", "turns", "literal", "raw", "walk"),
}
"""Names of earlier modules that only their authors understood."""


def _defined(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {node.id for node in tree.body if isinstance(node, ast.Name)}


def test_no_retired_name_is_left() -> None:
    for path in _own_sources():
        assert not {path.stem, *_defined(path)} & RETIRED, path


def _raises_without_key(path: Path) -> list[str]:
    """Where an error of ours is made without a key; errors of clicks and those that take one from another are left out."""
    kinds = {name for name, kind in vars(qkd.errors).items() if isinstance(kind, type) and issubclass(kind, QkdError)}
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in kinds - {"RecipeError"}]
    return [f"{path}:{call.lineno}" for call in made if not any(keyword.arg == "key" for keyword in call.keywords)]


def test_every_error_has_a_key() -> None:
    assert not [place for path in _own_sources() for place in _raises_without_key(path)]
