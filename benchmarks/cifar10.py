"""CIFAR-10: every method beside plain QAT and plain KD, from one shared float start. One Markdown table.

    python benchmarks/cifar10.py --root data/cifar10 --size small [--seeds 3] [--only qat,kd,cmtkd] [--threads 1]

`small`: the 20 000 training images of benchmarks/cifar10_20000.txt and a ResNet-8, for two CPU cores. `large`: all images
and a ResNet-20, for a GPU. The test split is whole in both. Seed by seed, method by method; every run is a folder under
--out and is done once: started again, the script goes on where it was. A row's accuracy is that of the exported file in
onnxruntime. Only the networks of the float starts are trained once for all seeds; a seed draws order and augmentation.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seeds import Failed, cell, exported, trained

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """One setting: architectures, data and schedules that all rows share."""

    student: str
    teacher: str
    assistant: str
    only: Path | None
    float_epochs: int
    epochs: int


SIZES = {
    "small": Size("resnet8", "resnet14", "resnet8", HERE / "cifar10_20000.txt", 12, 8),
    "large": Size("resnet20", "resnet56", "resnet32", None, 100, 60),
}


def rows(size: Size) -> dict[str, list[str]]:
    """Recipe and overrides of every row."""

    def teachers(**named: str) -> str:
        return f"teachers={{{', '.join(f'{name}: {entry}' for name, entry in named.items())}}}"

    def network(build: str, bits: str = "off", start: str = "") -> str:
        return f"{{build: {build}, quantize: {bits}, start_from: {start or '<start>/' + build + '.safetensors'}}}"

    large, small = size.teacher, size.assistant
    expert = teachers(float=network(large))
    three = teachers(**{n: network(large, f"w{b}a{b}") for n, b in (("four", 4), ("six", 6), ("eight", 8))})
    return {
        "qat": ["cifar10_qat_w2a2"],
        "kd": ["cifar10_kd_w2a2", expert],
        "cmtkd": ["cifar10_cmtkd_w2a2", three],
        "ctkd": ["cifar10_ctkd_w2a2", teachers(scratch=network(large, "w4a4", "scratch"), expert=network(large))],
        "dgkd": ["cifar10_dgkd_w2a2", teachers(teacher=network(large), assistant=network(small, "w4a4"))],
        "ffcl": ["cifar10_ffcl_w2a2", teachers(partner=network(large, "w4a4"))],
        "atsc": ["cifar10_atsc_w2a2", "method={name: atsc, labels: 1}", teachers(teacher=network(large, "w8a8"))],
        "sqakd": ["cifar10_sqakd_w2a2", teachers(float=network(size.student))],
        "dml": ["cifar10_dml_w2a2", teachers(four=network(large, "w4a4"))],
        "three_phase": ["cifar10_three_phase_w2a2", expert],
        "cmtkd, frozen teachers": ["cifar10_cmtkd_w2a2", three, "method.teachers=frozen"],
        "cmtkd, uniform importance": ["cifar10_cmtkd_w2a2", three, "method.importance=uniform"],
        "cmtkd, no exchange": ["cifar10_cmtkd_w2a2", three, "method.exchange=false"],
        "cmtkd, no mutual": ["cifar10_cmtkd_w2a2", three, "method.mutual=none"],
        "cmtkd, hint": ["cifar10_cmtkd_w2a2", three, "method.feature=hint"],
    }


def shared(size: Size, root: Path) -> list[str]:
    """What all rows share, whatever their recipes say."""
    only = f", only: {size.only.resolve()}" if size.only else ""
    return [
        f"data={{name: folder, root: {root.resolve()}, batch: 128{only}}}",
        f"train={{epochs: {size.epochs}, optimizer: sgd, rate: 0.05, weight_decay: 0.0001}}",
    ]


def float_start(build: str, size: Size, options: argparse.Namespace) -> None:
    """Train a float network once, and keep its weights where the rows look for them."""
    place = options.out / "float" / f"{build}.safetensors"
    if place.is_file():
        return
    folder = place.with_suffix("")
    words = ["cifar10_qat_w2a2", *shared(size, options.root)]
    words += [f"student={{build: {build}, start_from: scratch}}"]
    words += [f"train={{epochs: {size.float_epochs}, rate: 0.1, weight_decay: 0.0005}}"]
    train(words, folder, options)
    place.write_bytes((folder / "product.safetensors").read_bytes())


def train(words: list[str], folder: Path, options: argparse.Namespace) -> None:
    trained([*words, "--threads", options.threads, "--device", options.device], folder)


def one(name: str, seed: int, size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """One run, trained and exported, or read back if it is there."""
    folder = options.out / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    start = (options.out / "float").resolve()
    recipe, *overrides = (word.replace("<start>", str(start)) for word in rows(size)[name])
    student = f"student={{build: {size.student}, quantize: w2a2, start_from: {start}/{size.student}.safetensors}}"
    train([recipe, student, *shared(size, options.root), *overrides, f"seed={seed}"], folder, options)
    found = exported(folder, "--storage", "packed")
    return {**found, **found["cost"]}


def table(size: Size, found: dict[str, list[dict[str, Any]]]) -> None:
    float_top1 = next((row["float_top1"] for runs in found.values() for row in runs), None)
    print(f"\n{size.student}, {size.epochs} epochs, float start {float_top1} %\n")
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="names of rows, separated by commas; all of them if left out")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    size = SIZES[options.size]
    options.out = options.out or Path("runs") / f"cifar10-{options.size}"
    names = options.only.split(",") if options.only else list(rows(size))
    for build in dict.fromkeys([size.student, size.teacher, size.assistant]):
        float_start(build, size, options)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for name in names:
            try:
                found.setdefault(name, []).append(one(name, seed, size, options))
            except Failed as error:
                print(error, file=sys.stderr, flush=True)
        table(size, {name: runs for name, runs in found.items() if runs})


if __name__ == "__main__":
    main()
