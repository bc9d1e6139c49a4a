"""The messages about mistakes in recipes, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe_texts import GOOD, changed, folder_in, problems


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = folder_in(tmp_path)
    monkeypatch.chdir(folder)
    return folder


VIEWS = """
  a: {of: studet, average: 0.9}
  b: {of: mean, average: 0.9}
  c: {of: student, activations: 8, start_from: float, seed: 1}
  d: {of: float, activations: 8}
  e: {of: student, activations: 2}
  f: {of: student}
  g: {of: student, average: 0.9, share: 0.5}
  h: {of: student, activations: 4, share: 0, avrage: 0.9}
  i: {of: i, average: 0.9}
  j: {of: four, average: 0.9}
  mean: {of: student, average: 0.9}
  four: {build: resnet8, quantize: {weights: 4, activations: 4, progressive: [8, 4]}}
  float: {build: resnet8}
  k: {of: float, dropout: 0.1}
  l: {of: student, dropout: 1}"""

BAD: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("# nothing\n", ["1: recipe: empty; a recipe has at least method, student, data and train"]),
    "list": ("- a\n", ["1: recipe: a recipe is a mapping of keys to values, got ['a']"]),
    "syntax": (
        "method: {name: kd\nstudent: 3\n",
        ["2: recipe: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got ':'"],
    ),
    "tab": (
        "method:\n\tname: kd\n",
        [
            "2: recipe: not valid YAML: while scanning for the next token, "
            "found character '\\t' that cannot start any token"
        ],
    ),
    "latin-1": ("seed: 0\n# é\n".encode("latin-1"), ["2: recipe: not UTF-8: byte 0xe9"]),
    "control": (
        "seed: 0\nx: \x07\n",
        ["2: recipe: not valid YAML: the character U+0007: special characters are not allowed"],
    ),
    "code": (
        "seed: !!python/object/apply:os.getcwd []\n",
        ["1: recipe: not valid YAML: the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd' is not allowed"],
    ),
    "endless": ("a: &a [*a]\n", ["1: recipe: not valid YAML: aliases that contain themselves or grow without bounds"]),
    "two": (
        "seed: 0\n---\nseed: 1\n",
        ["2: recipe: not valid YAML: expected a single document in the stream, but found another document"],
    ),
    "nothing in it": (
        "{}\n",
        ["1: data: required", "1: method: required", "1: student: required", "1: train: required"],
    ),
    "course": (
        changed(method="{name: kd, soft: {from: 0.9, too: 0.5}}"),
        [
            "1: method.soft: must be a number or lacks the key to or has an unknown key too, "
            "got {'from': 0.9, 'too': 0.5}"
        ],
    ),
    "unknown key": (changed(sed="3"), ["5: sed: unknown key (did you mean 'seed'?)"]),
    "far from any key": (
        changed(zzz="3"),
        ["5: zzz: unknown key; known: method, student, teachers, match, data, pretrain, train, seed"],
    ),
    "twice": (
        changed(seed="1") + "data: {name: digits, size: 8, size: 9}\n",
        ["6: data: duplicate key, first given in line 3"],
    ),
    "twice inside": (
        changed(data="{name: digits, size: 8,\n  size: 9}"),
        ["4: data.size: duplicate key, first given in line 3"],
    ),
    "method": (changed(method="{name: kdd}"), ["1: method.name: no method 'kdd' (did you mean 'kd'?)"]),
    "method as a word": (changed(method="kd"), ["1: method: must be a mapping of keys to values: write {name: kd}"]),
    "method without a name": (
        changed(method="{nmae: kd}"),
        ["1: method.name: required", "1: method.nmae: unknown key (did you mean 'name'?)"],
    ),
    "method as a number": (changed(method="{name: 3}"), ["1: method.name: must be text, got 3"]),
    "method's option": (
        changed(method="{name: kd, temprature: 4}"),
        ["1: method.temprature: unknown key (did you mean 'temperature'?)"],
    ),
    "method's type": (
        changed(method="{name: kd, temperature: hot}"),
        ["1: method.temperature: must be a number, got 'hot'"],
    ),
    "own method": (
        changed(method="{name: ./mine.py:taught, kind: sotf, on: maybe, table: none.csv, sizes: [1, x], either: {}}"),
        [
            "1: method.either: must be a whole number or must be a list, got {}",
            "1: method.kind: must be 'soft' or 'hard', got 'sotf' (did you mean 'soft'?)",
            "1: method.on: must be true or false, got 'maybe'",
            "1: method.share: required",
            "1: method.sizes.1: must be a whole number, got 'x'",
        ],
    ),
    "own method's path": (
        changed(method="{name: ./mine.py:taught, share: 1, table: none.csv}"),
        ["1: method.table: no such file or folder: none.csv (tried HERE/none.csv)"],
    ),
    "own method's name": (
        changed(method="{name: ./mine.py:tought}"),
        ["1: method.name: HERE/mine.py: no 'tought' in it (did you mean 'taught'?); it has: taught, open_ended"],
    ),
    "own method is none": (
        changed(method="{name: ./mine.py:NUMBER}"),
        ["1: method.name: HERE/mine.py:NUMBER is int, not a function"],
    ),
    "own method's file": (
        changed(method="{name: ./mein.py:taught}"),
        ["1: method.name: no such file: ./mein.py (tried HERE/mein.py)"],
    ),
    "network": (
        changed(student="{build: resnet9}"),
        ["2: student.build: no network 'resnet9' (did you mean 'resnet8'?)"],
    ),
    "network of torchvision": (
        changed(student="{build: torchvision:resnet18, zero_init: true}"),
        ["2: student.zero_init: unknown key (did you mean 'zero_init_residual'?)"],
    ),
    "network's options": (
        changed(student="{build: resnet8, widht: 8, width: 0}"),
        ["2: student.widht: unknown key (did you mean 'width'?)", "2: student.width: must be at least 1, got 0"],
    ),
    "network without a name": (
        changed(student="{biuld: resnet8, quantise: w2a2, quantize: w22, width: 8}"),
        [
            "2: student.biuld: unknown key (did you mean 'build'?)",
            "2: student.build: required",
            "2: student.quantise: unknown key (did you mean 'quantize'?)",
            "2: student.quantize: 'w22' is not a quantization scheme (did you mean 'w2a2'?); "
            "write w<bits>a<bits> with 1 to 8 bits, such as w4a8",
        ],
    ),
    "no network": (changed(student=""), ["2: student: must be a mapping of keys to values, got null"]),
    "scheme": (
        changed(student="{build: resnet8, quantize: {weights: 4, activation: 4, first: 9.5}}"),
        [
            "2: student.quantize.activation: unknown key (did you mean 'activations'?)",
            "2: student.quantize.activations: required",
            "2: student.quantize.first: must be a whole number, got 9.5",
        ],
    ),
    "scheme's bits": (
        changed(student="{build: resnet8, quantize: {weights: 9, activations: 4}}"),
        ["2: student.quantize.weights: 9 is not a number of bits; possible are 1 to 8"],
    ),
    "scheme's every mistake": (
        changed(
            student="{build: resnet8, quantize: {weights: 4,\n  activations: 99,\n"
            '  first: 77, overrides: {\n  "layer1.*": banana,\n  fc: w2a2}}}'
        ),
        [
            "3: student.quantize.activations: 99 is not a number of bits; possible are 1 to 8",
            "4: student.quantize.first: 77 is not a number of bits; possible are 1 to 8",
            "5: student.quantize.overrides.layer1.*: 'banana' is not a quantization scheme; "
            "write w<bits>a<bits> with 1 to 8 bits, such as w4a8",
        ],
    ),
    "scheme's families": (
        changed(
            student="{build: resnet8, quantize: {weights: 1, activations: 2, first: 1, delta: hessian, exact: true}}"
        ),
        [
            "2: student.quantize.delta: family lsq scales no gradients; take family: ewgs, or leave delta out",
            "2: student.quantize.first: 1-bit weights have no grid in family lsq (its only level would be 0); "
            "take 2 bits, or weight_family: binary (-1 and 1 times a scale)",
            "2: student.quantize.weights: 1-bit weights have no grid in family lsq (its only level would be 0); "
            "take 2 bits, or weight_family: binary (-1 and 1 times a scale)",
        ],
    ),
    "scheme as a number": (
        changed(student="{build: resnet8, quantize: 0}"),
        ["2: student.quantize: must be off, a scheme such as w4a8, or a mapping with weights and activations, got 0"],
    ),
    "start": (
        changed(student="{build: resnet8, start_from: flaot}", teachers="{a: {build: resnet8, start_from: 3}}"),
        [
            "2: student.start_from: neither float nor scratch (did you mean 'float'?), and no such checkpoint: flaot "
            "(tried HERE/flaot)",
            "5: teachers.a.start_from: must be float, scratch or the path of a checkpoint, got 3",
        ],
    ),
    "seeds of networks": (
        changed(
            student="{build: resnet8, seed: -1}",
            teachers="{a: {build: resnet8, seed: sane}, b: {build: resnet8, seed: true}, c: {build: resnet8, seed: 1.5}}",
        ),
        [
            "2: student.seed: must be null, same or a whole number from 0 to 2^63 - 1, got -1",
            "5: teachers.a.seed: must be null, same or a whole number from 0 to 2^63 - 1, got 'sane' (did you mean 'same'?)",
            "5: teachers.b.seed: must be null, same or a whole number from 0 to 2^63 - 1, got true",
            "5: teachers.c.seed: must be null, same or a whole number from 0 to 2^63 - 1, got 1.5",
        ],
    ),
    "teachers": (
        changed(teachers="{student: {build: resnet8}, a b: {build: resnet8}, c: resnet8}"),
        [
            "5: teachers.a b: 'a b' is not a valid name: use letters, digits and _, and none of student, exchange, shared",
            "5: teachers.c: must be a mapping of keys to values: write {build: resnet8}",
            "5: teachers.student: 'student' is taken: use letters, digits and _, and none of student, exchange, shared",
        ],
    ),
    "views": (
        changed(
            student="{build: resnet8, quantize: w2a2}",
            teachers=VIEWS,
        ),
        [
            "6: teachers.a.of: no network 'studet' (did you mean 'student'?); there are student, four, float",
            "7: teachers.b.of: mean is a view itself: name the network whose parameters it has, student",
            "8: teachers.c.seed: a view has none: its parameters are those of student; leave it out",
            "8: teachers.c.start_from: a view has none: its parameters are those of student; leave it out",
            "9: teachers.d.activations: float is a float network, whose activations have no bits to change",
            "10: teachers.e.activations: must be above the 2 bits that student has, got 2",
            "11: teachers.f: sees nothing otherwise: add activations (bits), average (a decay) or dropout",
            "12: teachers.g.share: no effect without activations; it is how often they take those bits",
            "13: teachers.h.avrage: unknown key (did you mean 'average'?)",
            "13: teachers.h.share: must be above 0, got 0",
            "14: teachers.i.of: a view of itself",
            "15: teachers.j.average: no average over the bits of four, which go down during the run; leave progressive out",
            "19: teachers.k.dropout: float is a float network, which has no quantized activations to drop from",
            "20: teachers.l.dropout: must be below 1, got 1",
        ],
    ),
    "student as a view": (
        changed(student="{of: four, average: 0.9}", teachers="{four: {build: resnet8}}"),
        ["2: student.of: only a teacher can be a view of another network; write build"],
    ),
    "match of a view": (
        changed(
            teachers="{four: {build: resnet8}, mean: {of: four, average: 0.9}}",
            match="{m: {student: layer1, four: layer1, mean: layer1}}",
        ),
        ["6: match.m.mean: unknown key; known: student, four"],
    ),
    "teachers as a list": (
        changed(teachers="[{build: resnet8}]"),
        ["5: teachers: must be a mapping of keys to values, got [{'build': 'resnet8'}]"],
    ),
    "match": (
        changed(match="layer1"),
        ["5: match: must be a list of module paths or a mapping of stages, got 'layer1'"],
    ),
    "match twice": (
        changed(match="[a, b, a, 3]"),
        ["5: match.2: a is named twice", "5: match.3: must be the path of a module, got 3"],
    ),
    "match at the end": (
        changed(match="[layer1, logits]"),
        ["5: match.logits: logits is always the last stage of every network; leave it out"],
    ),
    "match's parts": (
        changed(
            teachers="{four: {build: resnet8}}", match="{m: {student: layer1, fuor: layer1}, n: {student: 1, four: a}}"
        ),
        [
            "6: match.m.four: required",
            "6: match.m.fuor: unknown key (did you mean 'four'?)",
            "6: match.n.student: must be the path of a module, got 1",
        ],
    ),
    "data": (
        changed(data="{name: digit, batch: 0}"),
        ["3: data.name: no data set 'digit' (did you mean 'digits'?)"],
    ),
    "data's options": (
        changed(data="{name: digits, batch: 0, channels: 2, size: 7, sized: 3}"),
        [
            "3: data.batch: must be at least 1, got 0",
            "3: data.channels: must be 1 or 3, got 2",
            "3: data.size: must be at least 8, got 7",
            "3: data.sized: unknown key (did you mean 'size'?)",
        ],
    ),
    "data's folder": (
        changed(data="{name: folder, root: images, val: 1}"),
        ["3: data.val: must be below 1, got 1"],
    ),
    "data's missing folder": (
        changed(data="{name: folder, root: images}"),
        ["3: data.root: no such file or folder: images (tried HERE/images)"],
    ),
    "train": (
        changed(train="{epochs: 0, optimizer: adam, rate: '0.1', weight_decay: -1e-4, reestimate: maybe, clip: .inf}"),
        [
            "4: train.clip: must be a finite number, got inf",
            "4: train.epochs: must be at least 1, got 0",
            "4: train.optimizer: must be 'sgd' or 'adamw', got 'adam' (did you mean 'adamw'?)",
            "4: train.rate: must be a number, got '0.1'",
            "4: train.reestimate: must be 'auto', true or false, got 'maybe'",
            "4: train.weight_decay: must be at least 0, got -0.0001",
        ],
    ),
    "train without epochs": (changed(train=""), ["4: train.epochs: required"]),
    "epochs by halves": (changed(train="{epochs: 1.5}"), ["4: train.epochs: must be a whole number, got 1.5"]),
    "epochs as a truth": (changed(train="{epochs: true}"), ["4: train.epochs: must be a whole number, got true"]),
    "pretrain": (changed(pretrain="[1]"), ["5: pretrain: must be a mapping of keys to values, got [1]"]),
    "seed": (changed(seed="-1"), ["5: seed: must be at least 0, got -1"]),
    "seed beyond what torch takes": (
        changed(seed=str(2**63), data=f"{{name: fake, seed: {2**64}}}"),
        [
            f"3: data.seed: must be at most 9.22337e+18, got {2**64}",
            f"5: seed: must be at most 9.22337e+18, got {2**63}",
        ],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_every_mistake_is_named_with_its_line(case: str) -> None:
    text, expected = BAD[case]
    assert problems(text) == expected


def test_all_mistakes_are_found_at_once() -> None:
    text = """\
method: {name: kd, temprature: 4}
student: {build: resnet8, width: 0, quantize: w22}
teachers: {four: {build: resnet9}, five: {build: resnet8, quantize: {weights: 5, activations: five}}}
match: [layer1, layer1]
data: {name: digits, size: large}
train: {epochs: 0}
sed: 3
data: {name: fake}
"""
    scheme = "is not a quantization scheme (did you mean 'w2a2'?); write w<bits>a<bits> with 1 to 8 bits, such as w4a8"
    assert problems(text) == [
        "1: method.temprature: unknown key (did you mean 'temperature'?)",
        f"2: student.quantize: 'w22' {scheme}",
        "2: student.width: must be at least 1, got 0",
        "3: teachers.five.quantize.activations: must be a whole number, got 'five'",
        "3: teachers.four.build: no network 'resnet9' (did you mean 'resnet8'?)",
        "4: match.1: layer1 is named twice",
        "5: data.size: must be a whole number, got 'large'",
        "6: train.epochs: must be at least 1, got 0",
        "7: sed: unknown key (did you mean 'seed'?)",
        "8: data: duplicate key, first given in line 5",
    ]


def test_lines_of_merged_mappings_are_those_of_their_own_keys() -> None:
    shared = "{a: &a {build: resnet8, width: 4},\n  b: {width: 0,\n    <<: *a},\n  c: {<<: *a, build: resnet9}}"
    assert problems(changed(teachers=shared)) == [
        "6: teachers.b.width: must be at least 1, got 0",
        "8: teachers.c.build: no network 'resnet9' (did you mean 'resnet8'?)",
    ]


def test_lines_are_those_of_the_keys() -> None:
    text = GOOD.replace("quantize: off}", "\n           quantize: of,\n           widht: 3}")
    assert [problem.split(":")[0] for problem in problems(text)] == ["6", "7"]
