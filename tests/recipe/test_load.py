"""Loading recipes: defaults, paths, warnings, the JSON Schema, and that a completed recipe loads to an equal one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml

from qkd import recipe
from qkd.distill.method_info import ABOVE_ZERO, method_info, requirements
from qkd.errors import Problem, RecipeError
from qkd.methods import METHODS
from qkd.options import options_from
from qkd.quantizers import Scheme
from tests.support.recipe_texts import GOOD, changed, folder_in


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = folder_in(tmp_path)
    monkeypatch.chdir(folder)
    return folder


def test_a_good_recipe_is_completed() -> None:
    made = recipe.load("good.yaml")
    assert made.name == "good"
    assert made.method.options["temperature"] == 4.0
    assert made.method.options["soft"] == 0.9
    assert made.student == recipe.NetworkEntry(
        build="resnet8", options={"width": 8, "stem": None}, quantize=Scheme.parse("w2a2"), start_from="float"
    )
    assert made.teachers["four"].options == {"width": 16, "stem": None}
    assert made.teachers["float"].quantize is None
    assert list(made.networks) == ["student", "four", "float"]
    assert made.match["layer2"] == {"student": "layer2", "four": "layer2", "float": "layer2"}
    assert made.data == recipe.DataEntry(name="digits", batch=64, options={"size": 16, "channels": 1, "seed": 0})
    assert made.train == recipe.Train(epochs=12, rate=0.05)
    assert made.pretrain == recipe.Pretrain(epochs=10, rate=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    assert made.seed == 0


def test_a_recipe_cannot_be_changed_afterwards() -> None:
    made = recipe.load("good.yaml")
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 1


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        changed(student="{build: resnet8, quantize: {weights: 3, activations: 5, sums: 4, per_channel: false}}"),
        changed(
            teachers="{four: {build: resnet8}}", match="{m: {student: layer1, four: layer2}, n: {student: a, four: b}}"
        ),
        changed(
            student="{build: resnet8, quantize: w2a2}",
            teachers="{four: {build: resnet8}, fine: {of: student, activations: 8, share: 0.5}, mean: {of: four, average: 0.9}}",
            match="{m: {student: layer1, four: layer2}}",
        ),
        changed(method="{name: ./mine.py:taught, share: 1, table: mine.py, sizes: [3], on: no, copy: '1e-4'}"),
        changed(method="{name: ./mine.py:open_ended, 'a b': [1, {c: off}], d: .5}"),
        changed(student="{build: torchvision:resnet18, width_per_group: 32}", seed="5"),
        changed(teachers="{a: &a {build: resnet8, width: 4}, b: {<<: *a, width: 2}}"),
        changed(student="{build: resnet8, seed: 4}", teachers="{a: {build: resnet8, seed: same}}"),
    ],
)
def test_a_completed_recipe_is_the_same_recipe(text: str) -> None:
    Path("r.yaml").write_text(text)
    made = recipe.load("r.yaml")
    Path("completed.yaml").write_text(recipe.dump(made))
    again = recipe.load("completed.yaml")
    assert again == made
    assert recipe.dump(again) == recipe.dump(made)
    assert yaml.safe_load(recipe.dump(made))["seed"] == made.seed
    assert again != recipe.load("r.yaml", ["train.epochs=99"])


def test_merged_mappings_keep_what_is_written_beside_them() -> None:
    Path("r.yaml").write_text(
        changed(teachers="{a: &a {build: resnet8, width: 4, quantize: w4a4}, b: {width: 2, <<: *a}}")
    )
    made = recipe.load("r.yaml").teachers
    assert made["b"].options == {"width": 2, "stem": None}
    assert made["b"].quantize == made["a"].quantize


def test_torchvision_s_own_defaults_are_left_to_torchvision() -> None:
    Path("r.yaml").write_text(changed(student="{build: torchvision:resnext50_32x4d}"))
    assert recipe.load("r.yaml").student.options == {}


def test_paths_are_looked_up_from_here_and_then_from_the_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "images").mkdir()
    method = "{name: ./mine.py:open_ended}"
    (here / "r.yaml").write_text(changed(method=method, data="{name: folder, root: images}"))
    from_here = recipe.load("r.yaml")
    monkeypatch.chdir(here.parent / "elsewhere")
    made = recipe.load(here / "r.yaml")
    assert made == from_here
    assert made.data.options["root"] == here / "images"
    assert made.method.name == f"{here}/mine.py:open_ended"
    Path("images").mkdir()
    assert recipe.load(here / "r.yaml").data.options["root"] == here.parent / "elsewhere" / "images"
    Path("images").rmdir()
    (here / "images").rmdir()
    with pytest.raises(RecipeError) as error:
        recipe.load(here / "r.yaml")
    tried = f"(tried {here.parent}/elsewhere/images, {here}/images)"
    assert error.value.problems == (
        Problem(str(here / "r.yaml"), 3, "data.root", f"no such file or folder: images {tried}"),
    )


def test_a_finished_run_s_recipe_is_read_without_its_data() -> None:
    Path("r.yaml").write_text(
        changed(student="{build: resnet8, start_from: gone.pt}", data="{name: folder, root: gone}")
    )
    made = recipe.load("r.yaml", paths_exist=False)
    assert made.student.start_from == "gone.pt"
    assert made.data.options["root"] == Path("gone")


@pytest.mark.parametrize("name", recipe.bundled())
def test_bundled_recipes_load_by_name_from_anywhere(name: str) -> None:
    made = recipe.load(name, paths_exist=False)  # recipes that read a folder load without its images
    assert made.name == name
    assert recipe.warnings(made) == []
    Path("completed.yaml").write_text(recipe.dump(made))
    assert recipe.load("completed.yaml", paths_exist=False) == made
    assert recipe.text_of(name).startswith("#")


def test_the_message_about_a_missing_recipe_lists_the_bundled_ones() -> None:
    name = recipe.bundled()[0]
    with pytest.raises(
        RecipeError, match=rf"^{name}x.yaml:1: recipe: cannot be read: no such file .*'{name}'\?\); .*: {name}"
    ):
        recipe.load(f"{name}x.yaml")
    with pytest.raises(RecipeError, match="recipe: cannot be read: is a folder, not a file"):
        recipe.load(".")


def test_warnings_name_suspicious_settings() -> None:
    Path("r.yaml").write_text(
        changed(
            student="{build: resnet8, quantize: w4a4}",
            teachers="{low: {build: resnet8, quantize: w4a3}, same: {build: resnet8, quantize: w4a4}}",
            train="{epochs: 2, warmup: 2}",
        )
    )
    assert [str(problem) for problem in recipe.warnings(recipe.load("r.yaml"))] == [
        "r.yaml:5: teachers.low.quantize: the teacher has fewer bits (w4a3) than the student (w4a4)",
        "r.yaml:4: train.warmup: 2 of 2 epochs: the learning rate never reaches its peak",
    ]


def test_options_without_effect_are_named_unless_they_are_at_their_defaults() -> None:
    Path("r.yaml").write_text(
        changed(
            method="{name: cmtkd, feature: none, gamma: 50, importance: uniform, importance_rate: 0.9, reduction: mean}"
        )
    )
    found = recipe.warnings(recipe.load("r.yaml"))
    assert [str(problem) for problem in found] == [
        "r.yaml:1: method.gamma: no effect with `feature: none`; it is used where `feature` is attention or hint or lattice",
        "r.yaml:1: method.importance_rate: no effect with `importance: uniform`; it is used where `importance` is learned",
    ]
    Path("r.yaml").write_text(changed(method="{name: dgkd, soft: 0, temperature: 3}"))
    (found_again,) = recipe.warnings(recipe.load("r.yaml"))
    assert found_again.message == "no effect with `soft: 0.0`; it is used where `soft` is above zero"


def test_settings_that_their_optimizer_or_schedule_does_not_use_are_named() -> None:
    unread = "{epochs: 4, optimizer: adamw, momentum: 0.8, nesterov: false, milestones: [0.3]}"
    Path("r.yaml").write_text(changed(train=unread, pretrain="{optimizer: adamw, momentum: 0.9, nesterov: false}"))
    assert [str(problem) for problem in recipe.warnings(recipe.load("r.yaml"))] == [
        "r.yaml:5: pretrain.nesterov: no effect with `optimizer: adamw`; it is used where `optimizer` is sgd",
        "r.yaml:4: train.milestones: no effect with `schedule: cosine`; it is used where `schedule` is step",
        "r.yaml:4: train.momentum: no effect with `optimizer: adamw`; it is used where `optimizer` is sgd",
        "r.yaml:4: train.nesterov: no effect with `optimizer: adamw`; it is used where `optimizer` is sgd",
    ]
    Path("r.yaml").write_text(changed(train="{epochs: 4, clip: null, clip_per: network}"))
    (found,) = recipe.warnings(recipe.load("r.yaml"))
    assert found.message == "no effect with `clip: null`; it is used where `clip` is above zero"
    Path("r.yaml").write_text(changed(train="{epochs: 4, schedule: step, milestones: [0.3], momentum: 0.8}"))
    assert recipe.warnings(recipe.load("r.yaml")) == []


@pytest.mark.parametrize("name", METHODS)
def test_what_an_option_requires_is_an_option_with_such_values(name: str) -> None:
    known, options = method_info(METHODS[name]), options_from(METHODS[name]).parameters
    assert known is not None
    for option, needs in known.only_with.items():
        for other, values in requirements(needs):
            assert option in options and options[other].default is not None
            choices = get_args(options[other].annotation)
            assert values == (ABOVE_ZERO,) or set(values) < set(choices)


def test_an_option_that_is_a_course_is_written_back_as_it_was_read() -> None:
    text = changed(method="{name: kd, soft: {from: 0.9, to: 0.5}}")
    Path("r.yaml").write_text(text)
    made = recipe.load("r.yaml")
    assert made.method.options["soft"] == {"from": 0.9, "to": 0.5}
    Path("again.yaml").write_text(recipe.dump(made))
    assert recipe.load("again.yaml") == made


def test_later_mistakes_get_a_line_too() -> None:
    made = recipe.load("good.yaml", ["seed=3"])
    assert str(made.problem("teachers.float.build", "too small")) == "good.yaml:5: teachers.float.build: too small"
    assert str(made.problem(("match", "layer1"), "no")) == "good.yaml:6: match.layer1: no"
    assert str(made.problem("seed", "no")) == "<override>:1: seed: no"
    assert str(made.problem("pretrain.rate", "no")) == "good.yaml:1: pretrain.rate: no"


def test_the_schema_has_the_keys_of_recipes() -> None:
    schema = json.loads(json.dumps(recipe.schema()))
    assert set(schema["properties"]) == set(recipe.Recipe.model_fields) - {"origin"}
    methods = {entry["properties"]["name"].get("const"): entry for entry in schema["properties"]["method"]["anyOf"]}
    assert set(METHODS) < set(methods)
    assert methods["kd"]["properties"]["temperature"]["type"] == "number"
    assert methods["kd"]["additionalProperties"] is False
    number, course = methods["kd"]["properties"]["soft"]["anyOf"]
    assert number["maximum"] == 1 and set(course["properties"]) == {"from", "to", "until"}
    assert course["properties"]["to"]["maximum"] == 1 and "$ref" not in json.dumps(schema)
    [digits] = [e for e in schema["properties"]["data"]["anyOf"] if e["properties"]["name"].get("const") == "digits"]
    assert digits["properties"]["size"]["minimum"] == 8
    assert digits["properties"]["channels"]["enum"] == [1, 3]
    assert schema["properties"]["train"]["required"] == ["epochs"]
    assert schema["properties"]["train"]["properties"]["rate"]["description"] == "The peak learning rate."
