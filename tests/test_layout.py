"""The house is as ARCHITECTURE.md says: packages, imports, no method in the engine, one version, the README's tree."""

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
