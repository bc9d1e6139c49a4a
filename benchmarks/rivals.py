"""The int8 student of qkd beside those of the tools one would take instead. One Markdown table.

    python benchmarks/rivals.py --root data/cifar10 --start FLOAT.safetensors --network resnet8 --epochs 8

All begin with the same float weights. Those that train see the same images in the same number of epochs, cropped and
flipped by the same code, with the same optimizer, schedule, rate and clipping; those that do not calibrate on the same 512.
A tool runs in a virtual environment of its own below --venvs, made here, with the versions below; torch, onnx and
onnxruntime are those of the environment this runs in, which it sees. All files are then measured in this one process:
top-1 on the whole test split in PyTorch and in onnxruntime, how often the two agree, convolutions that onnxruntime runs in
integers, latency of one image on one thread beside the float file, in turns with it. Training time is the processor's.
Each tool's folder below --out is done once: started again, the script goes on; delete a folder to have it again. A tool
that fails is a row that says what it said. With --seeds those that train do so once per seed (folders NAME, NAME-seed1,
...): accuracies are then mean ± standard deviation, the file and its speed are those of the first seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import table
from seeds import Failed, cell, exported, trained

HERE = Path(__file__).parent
sys.path.append(str(HERE / "rivals"))
from environments import run  # noqa: E402  (the scripts' own folder)
from task import arrays, calibration  # noqa: E402


@dataclass(frozen=True)
class Rival:
    """One row. ``script`` in benchmarks/rivals runs in the environment of ``tool``; without one qkd has it."""

    title: str
    tool: str = ""
    script: str = ""
    trains: bool = False


RIVALS = {
    "float": Rival("float"),
    "float_on": Rival("float, trained on for as long", "torch", "float_on", trains=True),
    "ours": Rival("**qkd, QAT W8A8**", trains=True),
    "ort_default": Rival("onnxruntime PTQ, defaults"),
    "ort_u8s8": Rival("onnxruntime PTQ, U8S8 per channel"),
    "nncf_ptq": Rival("NNCF PTQ of the ONNX file", "nncf", "nncf_ptq"),
    "aimet_ptq": Rival("AIMET PTQ of the ONNX file", "aimet-onnx", "aimet_ptq"),
    "brevitas_qat": Rival("Brevitas QAT, QCDQ", "brevitas", "brevitas_qat", trains=True),
    "aimet_qat": Rival("AIMET QAT", "aimet-torch", "aimet_qat", trains=True),
    "torchao_qat": Rival("torchao pt2e QAT", "torchao", "torchao_qat", trains=True),
    "nncf_qat": Rival("NNCF QAT, stripped", "nncf", "nncf_qat", trains=True),
    "modelopt_qat": Rival("ModelOpt QAT", "nvidia-modelopt", "modelopt_qat", trains=True),
}


def recipe_words(options: argparse.Namespace, bits: str, seed: int) -> list[str]:
    """The recipe that has the same data, start and settings as the rivals'."""
    only = f", only: {options.only_images.resolve()}" if options.only_images else ""
    return [
        "cifar10_qat_w2a2",
        f"student={{build: {options.network}, quantize: {bits}, start_from: {options.start.resolve()}}}",
        f"data={{name: folder, root: {options.root.resolve()}, batch: 128{only}}}",
        f"train={{epochs: {options.epochs}, optimizer: sgd, rate: {options.rate}, weight_decay: 0.0001}}",
        f"seed={seed}",
        *("--threads", "1", "--device", "cpu"),
    ]


def prepare(options: argparse.Namespace) -> Path:
    """Write once what the rivals read: images and labels as arrays, and the float network as an ONNX file."""
    from safetensors.torch import load_file

    from qkd.data import load
    from qkd.export import emit_float, save
    from qkd.networks.build import build

    options.out.mkdir(parents=True, exist_ok=True)
    place, floating = options.out / "arrays.npz", options.out / "float" / "student.onnx"
    if not place.is_file():
        data = load("folder", {"root": options.root, "only": options.only_images})
        splits = {name: getattr(data, name) for name in ("train", "test")}
        images = {f"{name}_images": split.images[:].numpy() for name, split in splits.items()}
        labels = {f"{name}_labels": split.labels.numpy() for name, split in splits.items()}
        np.savez(place, mean=data.mean, std=data.std, **images, **labels)
    if not floating.is_file():
        floating.parent.mkdir(exist_ok=True)
        network = build(options.network, classes=10)
        network.load_state_dict(load_file(options.start))
        save(emit_float(network.eval(), (3, 32, 32)), floating)
    return place


def make(name: str, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The student of one row: its file in its folder, and what is known of it."""
    rival = RIVALS[name]
    floating = options.out / "float" / "student.onnx"
    if rival.script:
        paths = {"data": options.out / "arrays.npz", "start": options.start, "floating": floating}
        given = {key: str(path.absolute()) for key, path in paths.items()}
        settings = {key: getattr(options, key) for key in ("network", "epochs", "rate")} | {"seed": seed}
        return run(rival.script, rival.tool, folder, options.venvs, task="student", **given, **settings)
    if name == "ours":
        return ours(folder, seed, options)
    if name.startswith("ort_"):
        return onnxruntime_ptq(name, folder, floating, options)
    return {}


def ours(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """qkd's own road: `qkd train`, `qkd export --storage packed`; what PyTorch predicts is read off the run."""
    from qkd.assembly.inputs import load_data
    from qkd.engine.metrics import logits
    from qkd.pipeline.reload import reload_product
    from qkd.storage.run import Run

    try:
        trained(recipe_words(options, "w8a8", seed), folder)
        found = exported(folder, "--storage", "packed")
    except Failed as error:
        return {"error": str(error).strip().splitlines()[-1]}
    if not (folder / "torch.npy").is_file():
        finished = reload_product(Run.open(folder))
        batches = load_data(finished.recipe).batches("test", 128)
        np.save(folder / "torch.npy", logits(finished.product, batches).argmax(1).numpy())
    return {"training_seconds": found["training_cpu_seconds"], "version": "qkd"}


def onnxruntime_ptq(name: str, folder: Path, floating: Path, options: argparse.Namespace) -> dict[str, Any]:
    from qkd.export import quantize_file

    folder.mkdir(exist_ok=True)
    if not (folder / "student.onnx").is_file():
        images = calibration(arrays(str(options.out / "arrays.npz"))).contiguous().numpy()
        quantize_file(floating, folder / "student.onnx", images, "default" if name == "ort_default" else "u8s8")
    return {}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What onnxruntime makes of a row's file, and PyTorch's predictions beside its."""
    from qkd.export import Images, bench, contenders, predict

    data = arrays(str(options.out / "arrays.npz"))
    labels, found = data.test.labels.numpy(), {}
    in_torch = folder / "torch.npy"
    if in_torch.is_file():
        found["torch"] = 100 * float((np.load(in_torch) == labels).mean())
    path, floating = folder / "student.onnx", options.out / "float" / "student.onnx"
    if not path.is_file():
        return found
    images = data.normalize(data.test.images).numpy()
    chosen = predict(path, images, threads=1).argmax(1)
    timed = contenders([path], against=floating, images=Images(images))
    row = bench(timed, seconds=options.seconds, clock=time.process_time)[0]
    if in_torch.is_file():
        found["agree"] = 100 * float((np.load(in_torch) == chosen).mean())
    size = sum(part.stat().st_size for part in folder.glob("student.onnx*"))
    found |= {"onnxruntime": 100 * float((chosen == labels).mean()), "kB": size / 1000, "speed": row.speedup}
    return found | {"convs": f"{row.integer_convs}/{row.convs}", "p50": row.p50_ms}


HEAD = (
    "tool",
    "top-1 torch",
    "top-1 onnxruntime",
    "they agree",
    "integer convs",
    "kB",
    "speed",
    "training s",
    "what it said",
)


def found_of(name: str, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One file, made or read back, and measured."""
    found = make(name, folder, seed, options)
    try:
        found = {**found, **measure(folder, options)}
    except Exception as error:  # a file that onnxruntime refuses is a result
        found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}", **found}
    print(folder.name, found, file=sys.stderr, flush=True)
    return found


def row_of(title: str, seeds: Sequence[Mapping[str, Any]]) -> list[object]:
    first, errors = seeds[0], [found["error"] for found in seeds if "error" in found]
    agree = [found["agree"] for found in seeds if "agree" in found]
    return [
        title,
        *(cell([found.get(key) for found in seeds]) for key in ("torch", "onnxruntime")),
        f"{statistics.mean(agree):.2f} %" if agree else "",
        *(first.get(key, "") for key in ("convs", "kB", "speed")),
        cell([found.get("training_seconds") for found in seeds]),
        (errors or [""])[0][:160].replace("|", "/"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--start", type=Path, required=True, help="float weights, as qkd keeps them (safetensors)")
    parser.add_argument("--network", default="resnet8")
    parser.add_argument("--only-images", type=Path, default=HERE / "cifar10_20000.txt", help="which training images")
    parser.add_argument("--only", help="names of rows, separated by commas; all of them if left out")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=1, help="of those that train: 0, 1, ...")
    parser.add_argument("--seconds", type=float, default=4.0, help="for which each file is timed")
    parser.add_argument("--out", type=Path, default=Path("runs/rivals/students"))
    parser.add_argument("--venvs", type=Path, default=Path("runs/rivals/venvs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare(options)
    rows = []
    for name in options.only.split(",") if options.only else RIVALS:
        seeds = range(options.seeds if RIVALS[name].trains else 1)
        folders = [options.out / (f"{name}-seed{seed}" if seed else name) for seed in seeds]
        found = [found_of(name, folder, seed, options) for folder, seed in zip(folders, seeds, strict=True)]
        rows.append(row_of(RIVALS[name].title, found))
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
