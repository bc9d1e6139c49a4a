"""The seed of each network: what it is by default, what `same` and a number make of it, and where it does nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qkd import recipe as recipes
from qkd.recipe import Recipe
from tests.support.recipe_texts import changed

NETWORK = "{{build: resnet8, width: 4{}}}"


@pytest.fixture(autouse=True)
def here(in_tmp: Path) -> Path:
    return in_tmp


def with_teachers(seed: int = 0, student: str = "", **teachers: str) -> Recipe:
    """A recipe whose networks have these words in their entries."""
    named = ", ".join(f"{name}: {NETWORK.format(words)}" for name, words in teachers.items())
    text = changed(method="{name: dml}", student=NETWORK.format(student), teachers=f"{{{named}}}", seed=str(seed))
    Path("r.yaml").write_text(text)
    return recipes.load("r.yaml")


def test_by_default_a_teacher_s_seed_follows_from_the_recipe_s_and_its_name() -> None:
    made = with_teachers(a="", b="")
    assert made.seed_of("student") == 0
    assert (made.seed_of("a"), made.seed_of("b")) == (3480064611, 2215627332)  # the same on every machine
    assert made.seed_of("a") == int(hashlib.sha256(b"0 a").hexdigest()[:8], 16)
    other = with_teachers(seed=1, b="", a="")
    assert other.seed_of("student") == 1
    assert other.seed_of("a") not in (made.seed_of("a"), other.seed_of("b"))


def test_same_is_the_recipe_s_seed_and_a_number_is_that_number() -> None:
    made = with_teachers(seed=5, student=", seed: 9", a=", seed: same", b=", seed: 7")
    assert [made.seed_of(part) for part in made.networks] == [9, 5, 7]


def test_equal_starts_need_one_architecture_one_start_and_one_seed() -> None:
    made = with_teachers(
        a=", seed: same, quantize: w4a4",
        b="",
        c=", seed: 0",
        d=", seed: same, start_from: scratch",
    )
    assert made.begin_equal("student", "a")
    assert made.begin_equal("a", "c")
    assert not made.begin_equal("student", "b")
    assert not made.begin_equal("a", "d")


def test_networks_of_one_checkpoint_begin_equal_whatever_their_seeds() -> None:
    Path("w.pt").touch()
    Path("v.pt").touch()
    made = with_teachers(a=", start_from: w.pt, seed: 1", b=", start_from: w.pt", c=", start_from: v.pt")
    assert made.begin_equal("a", "b")
    assert not made.begin_equal("b", "c")


def test_a_seed_beside_a_checkpoint_is_named() -> None:
    Path("w.pt").touch()
    made = with_teachers(student=", start_from: w.pt, seed: 3", a=", start_from: w.pt, seed: same", b=", seed: 4")
    said = "no effect with a checkpoint; it is used where `start_from` is float or scratch"
    assert [(each.key, each.message) for each in recipes.warnings(made)] == [
        ("student.seed", said),
        ("teachers.a.seed", said),
    ]


@pytest.mark.parametrize("name", recipes.bundled())
def test_of_the_recipes_that_come_along_only_those_for_the_own_float_copy_have_copies(name: str) -> None:
    made = recipes.load(name, paths_exist=False)
    parts = list(made.owners)
    copies = [(a, b) for at, a in enumerate(parts) for b in parts[at + 1 :] if made.begin_equal(a, b)]
    wanted = made.method.name == "sqakd" or "teacher_intervention" in name
    assert copies == ([("student", "float")] if wanted else [])
