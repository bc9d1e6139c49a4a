"""Overrides: what they change, and the messages about those that cannot be applied."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkd import recipe
from qkd.quantizers import Scheme
from tests.support.recipe_texts import GOOD, changed, folder_in, problems


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = folder_in(tmp_path)
    monkeypatch.chdir(folder)
    return folder


OVERRIDES = {
    "train.epoch=3": "1: train.epoch: unknown key (did you mean 'epochs'?)",
    "trian.epochs=3": "1: trian: unknown key (did you mean 'train'?)",
    "train.epochs=": "1: train.epochs: no value; write train.epochs=null for none or train.epochs='' for an empty text",
    "train.epochs": "1: train.epochs: not of the form key.key=value",
    "train..epochs=3": "1: train..epochs=3: not of the form key.key=value",
    "train.epochs=many": "1: train.epochs: must be a whole number, got 'many'",
    "train.epochs=[1": "1: train.epochs: not valid YAML: while parsing a flow sequence, "
    "expected ',' or ']', but got '<stream end>'",
    "student.quantize.weights=3": "1: student.quantize.weights: student.quantize is 'w2a2', "
    "not a mapping; give student.quantize as a whole",
    "match.2=layer3": "1: match.2: match is a list of 2, counted from 0",
    "teachers.six.build=resnet9": "1: teachers.six.build: no network 'resnet9' (did you mean 'resnet8'?)",
    "teachers.four={quantize: w4a4}": "1: teachers.four.build: required",
}


@pytest.mark.parametrize("text", OVERRIDES)
def test_mistakes_in_overrides_are_reported_as_such(text: str) -> None:
    assert problems(GOOD, text) == [f"<override>:{OVERRIDES[text]}"]


def test_mistakes_of_file_and_overrides_come_together() -> None:
    found = problems(changed(sed="3"), "seed=1", "train.epochs=x", "data.size=y")
    assert found == [
        "<override>:2: train.epochs: must be a whole number, got 'x'",
        "<override>:3: data.size: must be a whole number, got 'y'",
        "5: sed: unknown key (did you mean 'seed'?)",
    ]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("train.rate=1e-3", ("train", "rate"), 1e-3),
        ("train.clip=null", ("train", "clip"), None),
        ("train.augment=off", ("train", "augment"), False),
        ("train.reestimate=on", ("train", "reestimate"), True),
        ("pretrain.epochs=2", ("pretrain", "epochs"), 2),
        ("student.quantize=off", ("student", "quantize"), None),
        ("student.quantize=w8a8", ("student", "quantize"), Scheme.parse("w8a8")),
        ("student.quantize={weights: 4, activations: 8}", ("student", "quantize"), Scheme(4, 8)),
        ("data={name: fake, size: 8}", ("data", "name"), "fake"),
        ("teachers={}", ("teachers",), {}),
        ("match=[]", ("match",), {}),
        ("student.start_from=scratch", ("student", "start_from"), "scratch"),
    ],
)
def test_overrides_are_typed_as_yaml_is(text: str, key: tuple[str, ...], value: object) -> None:
    found: object = recipe.load("good.yaml", [text])
    for word in key:
        found = getattr(found, word)
    assert found == value
    assert type(found) is type(value)


def test_overrides_change_list_items_and_later_ones_win() -> None:
    made = recipe.load("good.yaml", ["match.1=layer3", "seed=1", "seed=2"])
    assert list(made.match) == ["layer1", "layer3"]
    assert made.seed == 2
