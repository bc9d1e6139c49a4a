"""CIFAR-10: every method beside plain QAT and plain KD, from one shared float start. One Markdown table.

    python benchmarks/cifar10.py --root data/cifar10 --size small [--seeds 3] [--only qat kd cmtkd] [--threads 1]
    python benchmarks/cifar10.py --search ...       # the settings that were tried for each row, on the validation split

`small`: the 20 000 training images of benchmarks/cifar10_20000.txt and a ResNet-8, for two CPU cores; a tenth is held back
for validation. `few`: the same float starts, but of those images only 200 of each class to train on, and 200 to validate:
what is left where the whole training set is not at hand. `large`: all images and a ResNet-20, for a GPU. The test split is
whole in all of them.

Seed by seed, method by method; every run is a folder under --out and is done once: started again, the script goes on where
it was. A row's accuracy is that of the exported file in onnxruntime. The float starts are trained once for all seeds and
methods (--starts shares them between sizes); a seed draws order and augmentation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seeds import Failed, cell, exported, trained

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """One setting: architectures, data and schedules that all rows share. ``of_class``: images of a class, None for all."""

    student: str
    teacher: str
    assistant: str
    only: Path | None
    float_epochs: int
    epochs: int
    batch: int = 128
    rate: float = 0.05
    of_class: int | None = None
    val: float = 0.1


LIST = HERE / "cifar10_20000.txt"
SIZES = {
    "small": Size("resnet8", "resnet14", "resnet8", LIST, 20, 3),
    "few": Size("resnet8", "resnet14", "resnet8", LIST, 20, 20, batch=64, rate=0.02, of_class=400, val=0.5),
    "large": Size("resnet20", "resnet56", "resnet32", None, 100, 60),
}


PUBLISHED = "method.target=min_logit method.alpha=1 method.beta=0.5"
COMBINED = "method.target=combined method.beta=1"
SEARCH = {
    "qat": ("train.rate=0.02", "train.rate=0.05", "train.rate=0.01"),
    "kd": ("method.soft=0.9", "method.soft=0.5", "method.soft=0.99"),
    "kd, own size": ("method.soft=0.9", "method.soft=0.5"),
    "cmtkd": (
        PUBLISHED,
        f"{COMBINED} method.alpha=0.1",
        f"{COMBINED} method.alpha=0.3",
        f"{COMBINED} method.alpha=1",
        f"{COMBINED} method.alpha=0.02",
        f"{COMBINED} method.alpha=0.1 method.beta=3",
        f"{COMBINED} method.alpha=0.1 train.rate=0.05",
        f"{COMBINED} method.alpha=0.1 method.temperature=8",
        f"{COMBINED} method.alpha=0.1 method.feature=hint method.gamma=10",
        f"{COMBINED} method.alpha=0.1 teachers.six.quantize=off",
        f"{COMBINED} method.alpha=0.1 teachers.four.quantize=w3a3",
        f"{COMBINED} method.alpha=0.1 method.feature=none method.importance=uniform",
        f"{COMBINED} method.alpha=0.1 method.feature=hint",
        f"{COMBINED} method.alpha=0.1 method.temperature=2",
        f"{COMBINED} method.alpha=0.1 method.teachers=frozen",
    ),
    "cmtkd, large teachers": (
        PUBLISHED,
        "method.alpha=0.1 method.beta=1 method.mutual=student",
        f"{COMBINED} method.alpha=0.1",
        f"{COMBINED} method.alpha=0.1 method.teachers=frozen",
    ),
    "ctkd": ("method.attention=100",),
    "ctkd, own size": ("method.attention=100",),
    "ctkd, own size, both trained": ("method.attention=100",),
    "dgkd": ("method.soft=0.9",),
    "dgkd, own size": ("method.soft=0.5", "method.soft=0.9"),
    "ffcl": ("method.response=3 method.feature=0",),
    "ffcl, own size": ("method.response=3", "method.response=3 method.feature=0"),
    "atsc": ("method.labels=1",),
    "atsc, own size": (
        "method.labels=1",
        "method.labels=0.1 method.soft=0.9",
        "method.labels=0.1 method.soft=0.9 method.feature=0.1",
        "method.labels=0.1 method.soft=0.9 method.feature=0.1 method.reduce=1",
        "method.labels=0.1 method.soft=0.9 method.reduce=1",
        "method.labels=0.3 method.soft=3 method.feature=0.1 method.reduce=1",
        "method.labels=0.5 method.soft=0.5 method.feature=0.1 method.reduce=1",
    ),
}
"""Settings of each row; those of one method, whatever the size of its teachers, are one search."""

SEARCH_SEED = 100
TUNED = {
    "kd": "method.soft=0.5",
    "cmtkd": f"{COMBINED} method.alpha=0.1",
    "ctkd": "method.attention=100",
    "dgkd": "method.soft=0.9",
    "atsc": "method.labels=0.5 method.soft=0.5 method.feature=0.1 method.reduce=1",
    "ffcl": "method.response=3 method.feature=0",
}
"""What the search found at size `few` to be better than a recipe as it stands."""


def rows(size: Size, tuned: bool = True) -> dict[str, list[str]]:
    """Recipe and overrides of every row; variants of a method (behind a comma) begin with what was tuned for it."""
    found = _untuned(size)
    if tuned:
        for name, words in found.items():
            words[1:1] = TUNED.get(name.partition(",")[0], "").split()
    return found


def _untuned(size: Size) -> dict[str, list[str]]:

    def teachers(**named: str) -> str:
        return f"teachers={{{', '.join(f'{name}: {entry}' for name, entry in named.items())}}}"

    def network(build: str, bits: str = "off", start: str = "") -> str:
        return f"{{build: {build}, quantize: {bits}, start_from: {start or '<start>/' + build + '.safetensors'}}}"

    def three(build: str) -> str:
        return teachers(**{n: network(build, f"w{b}a{b}") for n, b in (("four", 4), ("six", 6), ("eight", 8))})

    def sized(build: str) -> dict[str, list[str]]:
        """The methods whose teachers may be larger than the student or of its size."""
        scratch = network(build, "w4a4", "scratch")
        assistant = network(size.assistant, "w4a4")
        return {
            "kd": ["cifar10_kd_w2a2", teachers(float=network(build))],
            "ctkd": ["cifar10_ctkd_w2a2", teachers(scratch=scratch, expert=network(build))],
            "dgkd": ["cifar10_dgkd_w2a2", teachers(teacher=network(build), assistant=assistant)],
            "ffcl": ["cifar10_ffcl_w2a2", teachers(partner=network(build, "w4a4"))],
            "atsc": ["cifar10_atsc_w2a2", teachers(teacher=network(build, "w8a8"))],
            "dml": ["cifar10_dml_w2a2", teachers(four=network(build, "w4a4"))],
        }

    own = ["cifar10_cmtkd_w2a2", three(size.student)]
    published = PUBLISHED.split()
    return {
        "qat": ["cifar10_qat_w2a2"],
        **sized(size.teacher),
        **{f"{name}, own size": words for name, words in sized(size.student).items()},
        "kd, own size, 0.9 of the loss": [*sized(size.student)["kd"], "method.soft=0.9"],
        "ctkd, own size, both trained": [
            "cifar10_ctkd_w2a2",
            teachers(scratch=network(size.student, "w4a4"), expert=network(size.student)),
        ],
        "atsc, own size, two teachers": [
            "cifar10_atsc_w2a2",
            teachers(four=network(size.student, "w4a4"), eight=network(size.student, "w8a8")),
        ],
        "sqakd": ["cifar10_sqakd_w2a2", teachers(float=network(size.student))],
        "three_phase": ["cifar10_three_phase_w2a2", teachers(float=network(size.teacher))],
        "cmtkd": own,
        "cmtkd, as published": [*own, *published],
        "cmtkd, as published, large teachers": ["cifar10_cmtkd_w2a2", three(size.teacher), *published],
        "cmtkd, large teachers": ["cifar10_cmtkd_w2a2", three(size.teacher)],
        "cmtkd, frozen teachers": [*own, "method.teachers=frozen"],
        "cmtkd, uniform importance": [*own, "method.importance=uniform"],
        "cmtkd, no exchange": [*own, "method.exchange=false"],
        "cmtkd, no mutual": [*own, "method.mutual=none"],
        "cmtkd, hint": [*own, "method.feature=hint"],
        "cmtkd, no feature loss": [*own, "method.feature=none"],
    }


def shared(size: Size, options: argparse.Namespace) -> list[str]:
    """What all rows share, whatever their recipes say."""
    return [
        data_of(size, options),
        f"train={{epochs: {size.epochs}, optimizer: sgd, rate: {size.rate}, weight_decay: 0.0001}}",
    ]


def data_of(size: Size, options: argparse.Namespace) -> str:
    listed = f", only: {first_of_each_class(size, options.out).resolve()}" if size.only else ""
    return f"data={{name: folder, root: {options.root.resolve()}, batch: {size.batch}, val: {size.val}{listed}}}"


def first_of_each_class(size: Size, out: Path) -> Path:
    """The list of training images: the whole one, or a shorter one in ``out``."""
    assert size.only is not None
    if size.of_class is None:
        return size.only
    shorter = out / f"{size.of_class}-of-each-class.txt"
    if not shorter.is_file():
        classes: dict[str, list[str]] = {}
        for name in size.only.read_text().split():
            classes.setdefault(name.split("/")[0], []).append(name)
        shorter.write_text("".join(f"{name}\n" for names in classes.values() for name in names[: size.of_class]))
    return shorter


def float_start(build: str, size: Size, options: argparse.Namespace) -> None:
    """Train a float network once, and keep its weights where the rows look for them."""
    place = options.starts / f"{build}.safetensors"
    if place.is_file():
        return
    folder = place.with_suffix("")
    words = ["cifar10_qat_w2a2", *shared(replace(size, of_class=None, batch=128, val=0.1), options)]
    words += [f"student={{build: {build}, start_from: scratch}}"]
    words += [f"train={{epochs: {size.float_epochs}, rate: 0.1, weight_decay: 0.0005}}"]
    train(words, folder, options)
    place.write_bytes((folder / "product.safetensors").read_bytes())


def train(words: list[str], folder: Path, options: argparse.Namespace) -> None:
    trained([*words, "--threads", options.threads, "--device", options.device], folder)


def one(name: str, seed: int, size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """One run, trained and exported, or read back if it is there."""
    bits = "" if options.bits == "w2a2" else f"-{options.bits}"
    folder = options.out / f"{_file(name)}{bits}-seed{seed}"
    start(name, seed, size, folder, options)
    found = exported(folder, "--storage", "packed")
    return {**found, **found["cost"]}


def _file(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def start(
    name: str, seed: int, size: Size, folder: Path, options: argparse.Namespace, more: Sequence[str] = ()
) -> None:
    """Train one row's recipe from the float starts."""
    starts = options.starts.resolve()
    recipe, *overrides = (word.replace("<start>", str(starts)) for word in rows(size, tuned=not options.search)[name])
    student = (
        f"student={{build: {size.student}, quantize: {options.bits}, start_from: {starts}/{size.student}.safetensors}}"
    )
    train([recipe, student, *shared(size, options), *overrides, *more, f"seed={seed}"], folder, options)


def search(name: str, size: Size, options: argparse.Namespace) -> None:
    """The settings of a row, each trained for a few epochs with a seed of its own; accuracy on the validation split."""
    for number, words in enumerate(SEARCH[name]):
        folder = options.out / f"search-{_file(name)}-{number}"
        more = [*words.split(), f"train.epochs={-(-size.epochs // 2)}"]
        start(name, SEARCH_SEED, size, folder, options, more)
        found = json.loads((folder / "result.json").read_text())
        print(f"| {name} | `{words}` | {found['val_top1']:.2f} | {found['training_cpu_seconds']:.0f} |", flush=True)


def table(size: Size, bits: str, found: dict[str, list[dict[str, Any]]]) -> None:
    float_top1 = next((row["float_top1"] for runs in found.values() for row in runs), None)
    print(f"\n{size.student}, {bits}, {size.epochs} epochs, float start {float_top1} %\n")
    print("| method | seeds | fake-quantized | onnxruntime | training s | CPU s | peak MB | equal |")
    print("| --- | " + " | ".join(["---:"] * 7) + " |")
    for name, runs in found.items():
        keys = ("top1", "onnx_top1", "training_seconds", "training_cpu_seconds")
        columns = [cell([run.get(key) for run in runs]) for key in keys]
        peak = max(run.get("peak_memory_mb") or 0 for run in runs)
        equal = 100 * min(run["equal"] for run in runs)
        print(f"| {name} | {len(runs)} |", " | ".join(columns), f"| {peak:.0f} | {equal:.0f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument(
        "--starts", type=Path, help="folder of the float starts, to share them between sizes; OUT/float"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed: to share the seeds out")
    parser.add_argument("--epochs", type=int, help="of training, instead of the size's; take another --out for them")
    parser.add_argument("--rate", type=float, help="of training, instead of the size's")
    parser.add_argument("--bits", default="w2a2", help="scheme of the student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--search", action="store_true", help="try the settings of SEARCH on the validation split instead"
    )
    parser.add_argument("--only", nargs="+", help="names of rows; all of them if left out")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    size = SIZES[options.size]
    size = replace(size, epochs=options.epochs or size.epochs, rate=options.rate or size.rate)
    options.out = options.out or Path("runs") / f"cifar10-{options.size}"
    options.starts = options.starts or options.out / "float"
    options.out.mkdir(parents=True, exist_ok=True)
    options.starts.mkdir(parents=True, exist_ok=True)
    names = options.only or list(rows(size))
    for build in dict.fromkeys([size.student, size.teacher, size.assistant]):
        float_start(build, size, options)
    if options.search:
        print("| row | setting | val top-1 | CPU s |\n| --- | --- | ---: | ---: |")
        for name in options.only or SEARCH:
            search(name, size, options)
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.first, options.seeds):
        for name in names:
            try:
                found.setdefault(name, []).append(one(name, seed, size, options))
            except Failed as error:
                print(error, file=sys.stderr, flush=True)
        table(size, options.bits, {name: runs for name, runs in found.items() if runs})


if __name__ == "__main__":
    main()
