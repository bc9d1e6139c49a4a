"""Networks that begin as copies and are to teach each other are named; so is a copy that begins as none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.assembly.equal_starts import find_equal_starts, find_foreign_teachers
from qkd.assembly.plan_warnings import plan_warnings
from qkd.cli.check import check, explain
from qkd.engine.device import Machine
from qkd.engine.events import Event, PlanChecked
from qkd.pipeline.train import train_recipe
from qkd.recipe import Recipe
from qkd.storage.run import Run
from qkd.tasks.spec import DataSpec

TEXT = """\
method: {method}
student: {{build: resnet8, width: 4, quantize: w4a4, start_from: scratch}}
teachers:
  a: {{build: resnet8, width: 4, quantize: {a}}}
  b: {{build: resnet8, width: 4, quantize: {b}}}
match: [layer1, layer2]
train: {{epochs: 3, rate: 0.05}}
data: {{name: fake, batch: 16, size: 16, train: 64, test: 16, classes: 4}}
"""
SCRATCH = "start_from: scratch"
COPY = f"w4a4, {SCRATCH}, seed: same"
EIGHT = f"w8a8, {SCRATCH}, seed: same"
FACTS = DataSpec((3, 16, 16), 4)


def recipe_of(folder: Path, method: str, a: str, b: str = EIGHT) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(TEXT.format(method=method, a=a, b=b))
    return recipes.load(path)


def copies(folder: Path, method: str, a: str, b: str = EIGHT) -> list[str]:
    """What is said, up to the reason, without the file."""
    recipe = recipe_of(folder, method, a, b)
    found = find_equal_starts(recipe, assemble(recipe, FACTS))
    return [str(each).removeprefix(f"{recipe.origin.file}:").partition(" are equal")[0] for each in found]


@pytest.mark.parametrize(
    "method",
    [
        "{name: dml}",
        "{name: dml, update: in_turn}",
        "{name: kdcl, views: same}",
        "{name: bdkd}",
        "{name: dcm}",
        "{name: ffl}",  # the fused classifier begins at random, and moves both alike
        "{name: ffcl}",
        "{name: three_phase, self_studying: 0}",
    ],
)
def test_equal_peers_are_named(tmp_path: Path, method: str) -> None:
    assert copies(tmp_path, method, COPY) == ["4: teachers.a: student and a"]


@pytest.mark.parametrize(
    "method",
    [
        "{name: dml, weight: 0}",  # nothing joins them
        "{name: kdcl}",  # each sees a view of its own
        "{name: three_phase}",  # the student has learned alone before they meet
        "{name: three_phase, self_studying: 0, teacher_rate: 0.5}",
        "{name: kd}",  # a frozen teacher stays behind
        "{name: ctkd, scratch: a, expert: b}",  # one teaches, the other only learns
    ],
)
def test_equal_networks_that_something_else_tells_apart_are_not(tmp_path: Path, method: str) -> None:
    assert copies(tmp_path, method, COPY) == []


@pytest.mark.parametrize("other", [f"w4a4, {SCRATCH}", f"w4a4, {SCRATCH}, seed: 1", "w4a4, seed: same", EIGHT])
def test_networks_of_another_seed_start_or_scheme_are_not_copies(tmp_path: Path, other: str) -> None:
    assert copies(tmp_path, "{name: dml}", other, f"w3a3, {SCRATCH}") == []


def test_teachers_that_are_fused_or_averaged_must_differ(tmp_path: Path) -> None:
    for method in ("{name: cmtkd}", "{name: cmtkd, teachers: frozen}", "{name: kd}"):
        assert copies(tmp_path, method, EIGHT, EIGHT) == ["5: teachers.b: a and b"], method
    # a goes on from what both teachers gave, so that it is not the student
    assert copies(tmp_path, "{name: cmtkd}", COPY) == []


def test_all_copies_are_named_at_once_with_what_to_do(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "{name: dml}", COPY, COPY)
    unread, equal = plan_warnings(recipe, assemble(recipe, FACTS))
    assert (unread.key, equal.key) == ("match", "teachers.b")
    assert equal.message == (
        "student, a and b are equal in everything (build, scheme, float weights, view of the images), so together they "
        "teach no more than one of them in dml; give b another `seed:` (or none) or other bits"
    )


def test_networks_of_one_checkpoint_get_another_advice(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    recipe = recipe_of(tmp_path, "{name: dml}", "w4a4, start_from: w.pt", "w4a4, start_from: w.pt")
    (found,) = find_equal_starts(recipe, assemble(recipe, FACTS))
    assert found.message.endswith("give b another `start_from:` or other bits")


@pytest.mark.parametrize("seed", ["same", "null"])
def test_copies_imitate_nothing_and_networks_of_their_own_seeds_do(tmp_path: Path, seed: str) -> None:
    recipe = recipe_of(tmp_path, "{name: dml}", f"w4a4, {SCRATCH}, seed: {seed}")
    recipe = recipe.model_copy(update={"teachers": {"a": recipe.teachers["a"]}, "match": {}})
    said: list[Event] = []
    run = Run.create(tmp_path / "run")
    train_recipe(recipe, run, Machine("cpu", threads=1), listen=said.append)
    lines = [line for line in run.metrics() if line["phase"] == "train"]
    losses = [line[f"train/loss/imitate/{pair}"] for line in lines for pair in ("student<a", "a<student")]
    assert len(losses) == 6
    warned = [line for event in said if isinstance(event, PlanChecked) for line in event.lines]
    if seed == "same":
        assert losses == [0.0] * 6
        assert any("student and a are equal in everything" in line for line in warned)
    else:
        assert min(losses) > 1e-4
        assert not any("equal" in line for line in warned)


def test_by_default_no_two_networks_begin_with_the_same_weights(tmp_path: Path) -> None:
    def first(a: str, b: str) -> list[torch.Tensor]:
        networks = assemble(recipe_of(tmp_path, "{name: dml}", a, b), FACTS).ensemble.networks
        return [networks[part].state_dict()["network.conv1.weight"] for part in ("student", "a", "b")]

    student, a, b = first(f"w4a4, {SCRATCH}", f"w4a4, {SCRATCH}")
    assert not torch.equal(student, a) and not torch.equal(student, b) and not torch.equal(a, b)
    again, other, third = first(COPY, f"w4a4, {SCRATCH}")
    assert torch.equal(again, student) and torch.equal(other, student)
    assert torch.equal(third, b)  # not moved by what is built before it


SQAKD = """\
method: {{name: sqakd}}
student: {{build: resnet8, width: 4, quantize: w2a2{student}}}
teachers: {{float: {{build: {build}, width: 4{teacher}}}}}
train: {{epochs: 1}}
data: {{name: fake, size: 16}}
"""


def foreign(folder: Path, student: str = "", teacher: str = "", build: str = "resnet8") -> list[str]:
    path = folder / "r.yaml"
    path.write_text(SQAKD.format(student=student, teacher=teacher, build=build))
    return [f"{each.key}: {each.message.partition('; ')[2]}" for each in find_foreign_teachers(recipes.load(path))]


def test_sqakd_s_teacher_has_to_begin_with_the_student_s_float_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    loaded = f", start_from: {tmp_path}/w.pt"
    assert foreign(tmp_path, "", ", seed: same") == []
    assert foreign(tmp_path, loaded, loaded) == []
    assert foreign(tmp_path, "", "") == ["teachers.float: write `seed: same` in its entry"]
    assert foreign(tmp_path, ", seed: 4", "") == ["teachers.float: write `seed: 4` in its entry"]
    assert foreign(tmp_path, loaded, "") == [f"teachers.float: give it the student's `start_from: {tmp_path}/w.pt`"]
    assert foreign(tmp_path, "", ", seed: same", "resnet14") == [
        "teachers.float: give it the student's build and options"
    ]


@pytest.mark.parametrize("command", [check, explain])
def test_check_and_explain_say_it(tmp_path: Path, command: object) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SQAKD.format(student="", teacher="", build="resnet8"))
    said = CliRunner().invoke(command, [str(path)], catch_exceptions=False)  # type: ignore[arg-type]
    assert said.exit_code == 0
    assert said.stderr == (
        f"warning: {path}:3: teachers.float: does not begin with the student's float weights, and sqakd imitates the "
        f"student's own float copy; write `seed: same` in its entry\n"
    )
