"""The training loop beside a bare hand-written one, the data path beside torchvision's DataLoader, memory over teachers.

    python benchmarks/loop.py [--network resnet8] [--size 16] [--batch 64] [--rounds 7] [--steps 30] [--compile] [--json FILE]

Both loops train the same networks on the same batches with the same losses and optimizer, an epoch in turn, in one
process with one thread; the figure is the ratio of the medians, and beside it that of the
quickest epochs, which a busy machine disturbs least. The bare loop does nothing but that: no metrics, no
checks, no checkpoints. Peak memory is that of processes of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from qkd import data as data_sets
from qkd import recipe as recipes
from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.data import Data
from qkd.distill.plan import networks_needed
from qkd.engine.compile import compile_stages
from qkd.engine.device import Machine
from qkd.engine.loop import Loop
from qkd.engine.optimizer import optimizer_for, rate_at, set_rate
from qkd.engine.signals import InterruptHandler
from qkd.engine.state import EpochProgress, TrainingState
from qkd.engine.step import Action
from qkd.engine.training_context import Training
from qkd.quantizers import calibrate

EPOCHS = 1000


def prepared(method: str, words: argparse.Namespace, teachers: int = 3) -> tuple[recipes.Recipe, Assembly, Data]:
    images = words.steps * words.batch
    parts = ["student", *(f"teachers.{name}" for name in ("four", "six", "eight") if method == "cmtkd")]
    parts += ["teachers.float"] if method == "kd" else []
    recipe = recipes.load(
        f"digits_{method}_w2a2",
        [
            f"data={{name: fake, size: {words.size}, batch: {words.batch}, train: {images}, test: 16}}",
            f"train.epochs={EPOCHS}",
            *(f"{part}.{setting}" for part in parts for setting in (f"build={words.network}", "start_from=scratch")),
        ],
    )
    data = load_data(recipe)
    assembly = assemble(recipe, spec_of(data))
    assembly.ensemble.to(memory_format=torch.channels_last)
    images = [next(data.train_batches(words.batch, seed=0)).images]
    for network in assembly.ensemble.owners.values():
        calibrate(network.network, images)
    return recipe, assembly, data


def ours(method: str, words: argparse.Namespace) -> Callable[[], None]:
    """One epoch of the engine's loop, without evaluation and checkpoint."""
    recipe, assembly, data = prepared(method, words)
    fabric = Machine("cpu", threads=1).fabric()
    training = Training(assembly.ensemble, assembly.plan, data, recipe.train, words.batch, 0, fabric)
    module = fabric.setup_module(assembly.ensemble)
    if words.compile:
        compile_stages(assembly.ensemble)
    loop = Loop(training, module, TrainingState(epoch=1), InterruptHandler(3600))
    [phase] = assembly.plan.phases
    loop.actions = [
        Action(step, sorted(networks_needed(assembly.plan, step)), fabric.setup_optimizers(optimizer))
        for step in phase.steps
        for optimizer in [optimizer_for(step, assembly.ensemble, assembly.plan, recipe.train)]
    ]
    return lambda: loop._run_batches(phase, EPOCHS, EpochProgress()) and None


def bare(method: str, words: argparse.Namespace) -> Callable[[], None]:
    """One epoch of a loop as one would write it for this method alone."""
    recipe, assembly, data = prepared(method, words)
    [phase] = assembly.plan.phases
    [step] = phase.steps
    assembly.ensemble.set_learners(step.learners)
    optimizer = optimizer_for(step, assembly.ensemble, assembly.plan, recipe.train)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if words.compile:
        compile_stages(assembly.ensemble)
    networks, active = assembly.ensemble.networks, sorted(networks_needed(assembly.plan, step))

    def loss_of(batch: Any) -> torch.Tensor:
        if method == "qat":
            return F.cross_entropy(networks["student"](batch.images), batch.labels)
        outputs = assembly.ensemble(batch.images, active)
        return sum(term(outputs, batch) * term.weight_at(0.1) for term in step.terms)

    def epoch() -> None:
        for batch in data.train_batches(words.batch, seed=1, augment=True):
            set_rate(optimizer, recipe.train.rate * rate_at(0.001, recipe.train, EPOCHS))
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            if recipe.train.clip:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.train.clip)
            optimizer.step()

    return epoch


def seconds(work: Callable[[], None]) -> float:
    start = time.process_time()  # of this process alone, so that neighbours count as little as possible
    work()
    return time.process_time() - start


def overhead(method: str, words: argparse.Namespace) -> dict[str, Any]:
    engine, hand = ours(method, words), bare(method, words)
    for work in (engine, hand):
        work()
    pairs = []
    for number in range(words.rounds):
        order = (engine, hand) if number % 2 else (hand, engine)
        times = {work: seconds(work) for work in order}
        pairs.append((times[engine], times[hand]))
    ratios = [a / b for a, b in pairs]
    return {
        "method": method,
        "ours_ms": round(1000 * statistics.median(a for a, _ in pairs) / words.steps, 2),
        "bare_ms": round(1000 * statistics.median(b for _, b in pairs) / words.steps, 2),
        "ratio": round(statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs), 4),
        "best": round(min(a for a, _ in pairs) / min(b for _, b in pairs), 4),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
    }


def data_path(words: argparse.Namespace) -> dict[str, float]:
    """Images per second of wall time: batches from memory, augmented at once, beside a DataLoader of single images."""
    from torch.utils.data import DataLoader, TensorDataset
    from torchvision import transforms

    count = 4096
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = load_data(
        recipes.load("digits_qat_w2a2", ["data={name: fake, size: 32, batch: 128, train: 4096, test: 16}"])
    )
    object.__setattr__(data, "augment", "crop+flip")
    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )

    class Single(TensorDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return change(self.tensors[0][index]), self.tensors[1][index]

    loader = DataLoader(Single(images, torch.zeros(count)), 128, shuffle=True, num_workers=2)
    return _rates(
        {
            "ours": lambda: data.train_batches(128, seed=0, augment=True),
            "dataloader": lambda: iter(loader),
        }
    )


def file_path(words: argparse.Namespace) -> dict[str, float]:
    """Images per second of wall time from JPEG files of 256 x 256, a random part of each, scaled to 128: two workers each."""
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(128),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1024):
            path = Path(folder) / ("train" if number < 1000 else "test") / f"c{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 32, 32), 256, mode="bilinear")[0]
            Image.fromarray((smooth * 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(path, quality=90)
        data = data_sets.load("folder", {"root": Path(folder), "size": 128, "crop": "resized", "val": 0.0})
        data = dataclasses.replace(data, workers=2)
        loader = DataLoader(ImageFolder(f"{folder}/train", change), 100, shuffle=True, num_workers=2)
        return _rates(
            {
                "ours": lambda: data.train_batches(100, seed=0, augment=True),
                "dataloader": lambda: iter(loader),
            }
        )


def _rates(sources: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, batches in sources.items():
            start = time.perf_counter()
            seen = sum(len(batch[0]) for batch in batches())
            rates[name].append(seen / (time.perf_counter() - start))
    return {name: round(statistics.median(values)) for name, values in rates.items()}


def memory(words: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Peak memory (MiB) of a process that trains CMT-KD with so many teachers for one epoch; and with train.recompute."""
    found: dict[str, dict[int, float]] = {"kept": {}, "recomputed": {}}
    for teachers in (1, 2, 3, 4):
        for how, column in found.items():
            line = [sys.executable, __file__, "--teachers", str(teachers), "--network", words.network]
            line += ["--size", str(words.size), "--batch", str(words.batch)]
            line += ["--recompute"] if how == "recomputed" else []
            column[teachers] = float(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    return found


def peak(words: argparse.Namespace) -> float:
    from qkd.pipeline.train import train_recipe
    from qkd.storage.environment import peak_memory
    from qkd.storage.run import Run

    bits = ("w4a4", "w6a6", "w8a8", "w5a5")
    network = f"build: {words.network}, start_from: scratch"
    teachers = ", ".join(f"t{n}: {{{network}, quantize: {bits[n]}}}" for n in range(words.teachers))
    text = f"""
method: {{name: cmtkd}}
student: {{{network}, quantize: w2a2}}
teachers: {{{teachers}}}
match: [layer1, layer2]
data: {{name: fake, size: {words.size}, batch: {words.batch}, train: {2 * words.batch}, test: 16}}
train: {{epochs: 1, recompute: {str(words.recompute).lower()}}}
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(text)
        train_recipe(recipes.load(path), Run.create(Path(folder) / "run"), Machine("cpu", threads=1))
    return peak_memory(torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet8")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30, help="batches of a round")
    parser.add_argument("--methods", nargs="*", default=["qat", "kd", "cmtkd"])
    parser.add_argument("--compile", action="store_true", help="compile the stages of both")
    parser.add_argument("--quick", action="store_true", help="the loop alone")
    parser.add_argument("--teachers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    if words.teachers:
        print(peak(words))
        return
    rows = [overhead(method, words) for method in words.methods]
    print(f"{words.network}, {words.size} x {words.size}, batch {words.batch}, one thread, CPU ms per step\n")
    print("| method | loop | bare | ratio | of the best |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['method']} | {row['ours_ms']} | {row['bare_ms']} | {row['ratio']:.3f} | {row['best']:.3f} |")
    found: dict[str, Any] = {"loop": rows}
    if not words.quick:
        found |= {"images_per_second": data_path(words), "files_per_second": file_path(words)}
        found["memory_mb"] = memory(words)
        print(f"\nimages/s from memory: {found['images_per_second']}\nimages/s from files: {found['files_per_second']}")
        print(f"peak MiB by teachers: {found['memory_mb']}")
    if words.json:
        words.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
