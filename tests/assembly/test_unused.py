"""Matched layers and teachers that a plan never listens to are named; those that it does, are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.assembly.unused import find_unused
from qkd.cli.check import check
from qkd.tasks.spec import DataSpec
from tests.support.user_method import MINE

TEXT = """\
method: {method}
student: {{build: resnet8, quantize: w2a2}}
teachers:
  four: {{build: resnet8, quantize: w4a4}}
  eight: {{build: resnet8, quantize: w8a8}}
match: [layer1, layer2, layer3]
train: {train}
data: {{name: fake, size: 8, train: 8, test: 8}}
"""
UNASKED = "{}: teachers.{}: unused: no loss term of qat as set here reads this teacher"


def no_features(method: str, stages: str = "layer1, layer2, layer3") -> str:
    return f"6: match: {stages}: unused: {method} as set here reads no features there"


def told(folder: Path, method: str, train: str = "{epochs: 2}") -> list[str]:
    path = folder / "r.yaml"
    path.write_text(TEXT.format(method=method, train=train))
    recipe = recipes.load(path)
    problems = find_unused(recipe, assemble(recipe, DataSpec((3, 8, 8), 10)))
    return [str(problem).removeprefix(f"{path}:") for problem in problems]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("{name: kd}", [no_features("kd")]),
        ("{name: kd, feature: hint}", []),
        ("{name: dml}", [no_features("dml")]),
        ("{name: cmtkd, feature: none}", []),  # they still hand each other what they fuse
        ("{name: cmtkd, exchange: false}", []),
        ("{name: simkd}", [no_features("simkd", "layer1, layer2")]),  # it borrows what stands behind the last
        ("{name: qat}", [UNASKED.format(4, "four"), UNASKED.format(5, "eight"), no_features("qat")]),
    ],
)
def test_what_a_plan_never_listens_to_is_named(tmp_path: Path, method: str, said: list[str]) -> None:
    assert told(tmp_path, method) == said


def test_layers_at_which_memory_is_saved_are_not_idle(tmp_path: Path) -> None:
    assert told(tmp_path, "{name: kd}", "{epochs: 2, recompute: true}") == []


def test_a_method_of_ones_own_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("for s in setup.stages", "for s in setup.stages[1:]"))
    teacher, layers = told(tmp_path, f"{{name: {tmp_path}/mine.py:my_method}}")
    assert teacher.startswith("5: teachers.eight: unused: ")
    assert layers.startswith("6: match: layer1: unused: ")


def test_check_says_it_and_leaves_stdout_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT.format(method="{name: kd}", train="{epochs: 2}"))
    said = CliRunner().invoke(check, [str(path), "--json"], catch_exceptions=False)
    assert said.stderr == f"warning: {path}:{no_features('kd')}\n"
    assert json.loads(said.stdout)["problems"] == []
