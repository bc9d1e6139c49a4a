"""What can only be found once there are networks: all of it is told together, each mistake where it stands in the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkd.assembly.assemble import assemble
from qkd.errors import PlanError, RecipeError
from qkd.recipe.files import load
from qkd.tasks.spec import DataSpec
from tests.support.recipe_texts import changed

FACTS = DataSpec((3, 16, 16), 5)
MINE = """\
from torch import nn

def boom(setup):
    return 1 / 0

def no_cast():
    return 3

class Halved(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes + 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
"""


NETWORK = """\
from torch import nn

class Raises(nn.Module):
    is_leaf = True

    def forward(self, x):
        raise KeyError("odd")

class Odd(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.fc, self.odd = nn.Conv2d(3, 4, 3), nn.Linear(4, classes), Raises()

    def forward(self, images):
        scores = self.fc(self.conv(images).mean((2, 3)))
        return {}
"""


def told(folder: Path, text: str) -> list[str]:
    """What is said about a recipe, each up to its first semicolon, and without its folder."""
    path = folder / "many.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        assemble(load(path), FACTS)
    assert error.value.exit_code == 2
    return [str(problem).removeprefix(f"{folder}/").partition(";")[0] for problem in error.value.problems]


def refused(folder: Path, method: str) -> str:
    (folder / "mine.py").write_text(MINE)
    path = folder / "many.yaml"
    path.write_text(changed(method=method))
    with pytest.raises(PlanError) as error:
        assemble(load(path), FACTS)
    return str(error.value).replace(str(folder), "HERE")


def test_mistakes_of_all_networks_and_matched_layers_are_told_together(tmp_path: Path) -> None:
    student = (
        '{build: resnet8, quantize: {weights: 4, activations: 4, overrides: {\n  "nolayer*": w2a2,\n  "fx": w2a2}}}'
    )
    teachers = '{four: {build: resnet8, quantize: {weights: 4, activations: 4, overrides: {"layr1.*": w2a2}}}}'
    text = changed(method="{name: kd}", student=student, teachers=teachers, match="[layer1,\n  layer9]")
    assert told(tmp_path, text) == [
        "many.yaml:3: student.quantize.overrides.nolayer*: no layer is called 'nolayer*' (did you mean 'layer3.*'?)",
        "many.yaml:4: student.quantize.overrides.fx: no layer is called 'fx'",
        "many.yaml:7: teachers.four.quantize.overrides.layr1.*: no layer is called 'layr1.*' (did you mean 'layer1.*'?)",
        "many.yaml:9: match.layer9: student, four: no module 'layer9' to cut at (did you mean 'layer3'?)",
    ]


def test_a_matched_layer_is_told_at_the_network_it_is_written_for(tmp_path: Path) -> None:
    match = "{\n  m: {student: layer1, four: layr1},\n  n: {student: layr2,\n  four: layer2}}"
    found = told(tmp_path, changed(teachers="{four: {build: resnet8}}", match=match))
    assert [line.partition(" to cut")[0] for line in found] == [
        "many.yaml:7: match.m.four: no module 'layr1'",
        "many.yaml:8: match.n.student: no module 'layr2'",
    ]


def test_layers_in_the_wrong_order_are_told_at_the_match(tmp_path: Path) -> None:
    assert told(tmp_path, changed(match="[layer2, layer1]")) == [
        "many.yaml:5: match: student: cut at layer2, layer1: in this network the order is layer1, layer2"
    ]


def test_networks_that_cannot_be_built_or_do_not_fit_the_data_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    teachers = "{two: {build: ./mine.py:Halved}, four: {build: torchvision:resnet18, width_per_group: 3}}"
    first, second = told(tmp_path, changed(student="{build: ./mine.py:Halved}", teachers=teachers))[:2]
    assert first == "many.yaml:2: student.build: its output has shape (batch, 7)"
    assert second.startswith("many.yaml:5: teachers.four.build: torchvision:resnet18: cannot be built")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{'out': scores}", "its output is a dict"),
        ("(scores, images)", "its output is a tuple of 2"),
        ("(scores,)", "its output is a tuple of 1"),
        ("scores.chunk(2, 1)", "its output is a tuple of 2"),
        ("self.odd(scores)", "fails on images of 3x16x16 before logits: KeyError: 'odd'"),
    ],
)
def test_a_network_that_gives_anything_but_logits_is_told_at_its_line(tmp_path: Path, given: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(NETWORK.format(given))
    text = changed(method="{name: kd}", teachers="{two: {build: ./mine.py:Odd}}", match="[]")
    assert told(tmp_path, text) == [f"many.yaml:5: teachers.two.build: {said}"]


def test_nothing_is_trained_for_a_recipe_that_will_be_refused(tmp_path: Path) -> None:
    begun = []
    path = tmp_path / "many.yaml"
    teachers = "{four: {build: resnet8}}"
    path.write_text(
        changed(
            student="{build: resnet8, quantize: {weights: 4, activations: 4, overrides: {x: w2a2}}}", teachers=teachers
        )
    )
    with pytest.raises(RecipeError):
        assemble(load(path), FACTS, start=lambda part, entry, network: begun.append(part))
    assert begun == ["student"]


def test_what_a_method_refuses_is_told_at_the_method(tmp_path: Path) -> None:
    assert refused(tmp_path, "{name: kd}").startswith("HERE/many.yaml:1: method: kd needs a teacher")


@pytest.mark.parametrize(
    ("name", "said"),
    [("boom", "ZeroDivisionError: division by zero"), ("no_cast", "TypeError: no_cast() takes 0 positional arguments")],
)
def test_what_an_own_method_raises_is_told_with_its_file(tmp_path: Path, name: str, said: str) -> None:
    found = refused(tmp_path, f"{{name: ./mine.py:{name}}}")
    assert found.startswith(f"HERE/many.yaml:1: method: HERE/mine.py:{name}: {said}")
