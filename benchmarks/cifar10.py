"""CIFAR-10: every method beside plain QAT and plain KD, from one shared float start. One Markdown table.

    python benchmarks/cifar10.py --root data/cifar10 --size small [--seeds 3] [--only qat kd cmtkd] [--threads 1]
    python benchmarks/cifar10.py --search ...       # the settings that are tried for each method, on the validation split

`full`: all images, a long schedule and every method; a queue of its own (cifar10_full.py).
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
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cifar10_full
from cifar10_rows import SIZES, Size, rows
from cifar10_search import GO_ON, SEARCH, SEEDS, TRIALS
from seeds import Failed, cell, exported, trained


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


def starts_of(names: Sequence[str], size: Size) -> list[str]:
    """The float starts that the rows ask for: a build, or ``build-seed``."""
    words = " ".join(word for name in names for word in rows(size)[name])
    return list(dict.fromkeys([size.student, *re.findall(r"<start>/([\w-]+)\.safetensors", words)]))


def float_start(name: str, size: Size, options: argparse.Namespace) -> None:
    """Train a float network once, and keep its weights where the rows look for them."""
    place = options.starts / f"{name}.safetensors"
    if place.is_file():
        return
    build, _, seed = name.partition("-")
    folder = place.with_suffix("")
    words = ["cifar10_qat_w2a2", *shared(replace(size, of_class=None, batch=128, val=0.1), options)]
    words += [f"student={{build: {build}, start_from: scratch}}"]
    words += [f"train={{epochs: {size.float_epochs}, rate: 0.1, weight_decay: 0.0005}}", f"seed={seed or 0}"]
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
    long = re.sub(r"w(\d+)a(\d+)", r'"weights":\1,"activations":\2', options.bits)
    words = [*rows(size, tuned=not (options.search or options.trials))[name], *more]
    recipe, *overrides = (word.replace("<start>", str(starts)).replace("<bits>", long) for word in words)
    student = (
        f"student={{build: {size.student}, quantize: {options.bits}, start_from: {starts}/{size.student}.safetensors}}"
    )
    train([recipe, student, *shared(size, options), *overrides, f"seed={seed}"], folder, options)


def search(method: str, size: Size, options: argparse.Namespace) -> None:
    """A method's settings on the validation split: all of them with the first seed, the best with the others too."""
    settings = SEARCH[method]
    found = [[tried(name, words, SEEDS[0], size, options)] for name, words in settings]
    best = sorted(range(len(settings)), key=lambda number: -found[number][0])[:GO_ON]
    for number in best:
        found[number] += [tried(*settings[number], seed, size, options) for seed in SEEDS[1:]]
    chosen = max(best, key=lambda number: sum(found[number]))
    for number, ((name, words), top1) in enumerate(zip(settings, found, strict=True)):
        mean = f"{sum(top1) / len(top1):.2f}" if number in best else ""
        mark = "**" if number == chosen else ""
        print(f"| {mark}{name}{mark} | `{words}` | {', '.join(f'{each:.2f}' for each in top1)} | {mean} |", flush=True)


def tried(name: str, words: str, seed: int, size: Size, options: argparse.Namespace) -> float:
    """Top-1 on the validation split, in percent, after half the epochs; 0 if the training failed."""
    setting = re.sub(r"[^\w.=-]+", "-", words) or "as-it-stands"
    folder = options.out / "search" / f"{_file(name)}-{setting}-seed{seed}"
    try:
        start(name, seed, size, folder, options, [*words.split(), f"train.epochs={-(-size.epochs // 2)}"])
    except Failed as error:
        print(error, file=sys.stderr, flush=True)
        return 0.0
    return float(json.loads((folder / "result.json").read_text())["val_top1"])


def trials(name: str, size: Size, options: argparse.Namespace) -> None:
    for words in TRIALS[name]:
        print(f"| {name} | `{words}` | {tried(name, words, SEEDS[0], size, options):.2f} | |", flush=True)


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


def searched(size: Size, options: argparse.Namespace) -> None:
    names = options.only or list(TRIALS if options.trials else SEARCH)
    used = names if options.trials else [row for name in names for row, _ in SEARCH[name]]
    for start_name in starts_of(used, size):
        float_start(start_name, size, options)
    print("| row | setting | val top-1 | mean |\n| --- | --- | ---: | ---: |", flush=True)
    for name in names:
        (trials if options.trials else search)(name, size, options)


def main() -> None:
    if "--size" in sys.argv and sys.argv[sys.argv.index("--size") + 1 :][:1] == ["full"]:
        at = sys.argv.index("--size")
        cifar10_full.main([*sys.argv[1:at], *sys.argv[at + 2 :]])
        return
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
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--search", action="store_true", help="try the settings of SEARCH on the validation split")
    parser.add_argument("--trials", action="store_true", help="try those of TRIALS instead")
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
    if options.search or options.trials:
        searched(size, options)
        return
    names = options.only or list(rows(size))
    for start_name in starts_of(names, size):
        float_start(start_name, size, options)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.first, options.first + options.seeds):
        for name in names:
            try:
                found.setdefault(name, []).append(one(name, seed, size, options))
            except Failed as error:
                print(error, file=sys.stderr, flush=True)
        table(size, options.bits, {name: runs for name, runs in found.items() if runs})


if __name__ == "__main__":
    main()
