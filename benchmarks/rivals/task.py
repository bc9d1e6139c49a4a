"""What the scripts in this folder share: the job they are given, the data, the float start, the loop, the clock.

Every script runs in the virtual environment of the tool it is named after, made by `environments.py`, as
`python NAME.py JOB`, a JSON object. `main` is for tools that quantize a network in PyTorch, `main_of_file` for those that
quantize an ONNX file. What a script finds is written into the job's folder: `torch.npy` (the classes PyTorch predicts on
the test split), `student.onnx`, `said.json`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import Work, medians, ratios
from torch import Tensor, nn
from torch.nn import functional as F

from qkd.data.batches import Data, Split
from qkd.engine.device import keep_memory
from qkd.networks import NETWORKS
from qkd.tasks.batch import Batch

CALIBRATION, BATCH, CLASSES = 512, 128, 10
Quantize = Callable[[nn.Module, Tensor], nn.Module]
"""A float network and calibration images -> what is trained."""
Export = Callable[[nn.Module, Tensor, str], object]
"""What was trained, one image, where the file goes."""


@dataclass(frozen=True)
class Job:
    """``task``: student, or cost. Paths: of arrays, of float weights, of the float ONNX file, of the folder to write to."""

    task: str
    tool: str = ""
    data: str = ""
    start: str = ""
    floating: str = ""
    out: str = ""
    network: str = "resnet20"
    epochs: int = 8
    rate: float = 0.01
    seed: int = 0
    batch: int = 64
    rounds: int = 15

    def tell(self, **found: Any) -> None:
        """Add to what is known of this job, on disk."""
        path = Path(self.out) / "said.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**before, **found}, indent=1) + "\n")


@contextlib.contextmanager
def job() -> Iterator[Job]:
    """What this process was asked for; one thread, quiet, the seed set; the tool's version is told, and what went wrong."""
    os.environ["NNCF_CI"] = "1"  # no telemetry
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_memory()
    asked = Job(**json.loads(sys.argv[1]))
    torch.manual_seed(asked.seed)
    asked.tell(version=f"{asked.tool} {version(asked.tool)}")
    try:
        yield asked
    except Exception as error:
        asked.tell(error=f"{type(error).__name__}: {(str(error).strip().splitlines() or ['?'])[0]}")
        raise


def arrays(path: str) -> Data:
    """The data set as the recipe's loader gave it, from the file of arrays that `rivals.py` writes."""
    with np.load(path) as found:
        splits = [
            Split(*(torch.from_numpy(found[f"{name}_{what}"]) for what in ("images", "labels")))
            for name in ("train", "test")
        ]
        mean, std = (tuple(found[name].tolist()) for name in ("mean", "std"))
    labels = tuple(str(label) for label in range(CLASSES))
    return Data(splits[0], splits[1], splits[1], labels, mean, std, "crop+flip")


def calibration(data: Data) -> Tensor:
    """The same images for every tool, (512, C, H, W), normalised, not augmented."""
    return next(data.train_batches(CALIBRATION, seed=0)).images


def network_of(name: str, start: str = "") -> nn.Module:
    """A float network, with weights from a file if one is named."""
    network = NETWORKS[name](classes=CLASSES)
    if start:
        from safetensors.torch import load_file

        network.load_state_dict(load_file(start))
    return network.to(memory_format=torch.channels_last).eval()


def sgd(module: nn.Module, rate: float) -> torch.optim.SGD:
    """As qkd's: Nesterov momentum, decay for weights of two and more dimensions alone."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    flat = [parameter for parameter in parameters if parameter.dim() < 2]
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    groups = [{"params": weights, "weight_decay": 1e-4}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def batches(data: Data, asked: Job) -> Iterator[tuple[float, Batch]]:
    """Progress of 0..1 and a batch, augmented, over all epochs."""
    steps = -(-len(data.train.labels) // BATCH) * asked.epochs
    done = 0
    for epoch in range(asked.epochs):
        for batch in data.train_batches(BATCH, seed=1000 * asked.seed + epoch, augment=True):
            yield done / steps, batch
            done += 1


def trained(module: nn.Module, data: Data, asked: Job) -> float:
    """Train with a cosine schedule and clipped gradients. -> CPU seconds"""
    module.train()
    optimizer, start = sgd(module, asked.rate), time.process_time()
    for progress, batch in batches(data, asked):
        for group in optimizer.param_groups:
            group["lr"] = asked.rate * 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.zero_grad()
        F.cross_entropy(module(batch.images), batch.labels).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
    return time.process_time() - start


@torch.no_grad()
def predicted(module: nn.Module, data: Data) -> np.ndarray:
    return torch.cat([module(batch.images).argmax(1) for batch in data.batches("test", BATCH)]).numpy()


def step_of(module: nn.Module, images: Tensor) -> Work:
    """Forward, backward and an update on a batch that stays the same."""
    module.train()
    optimizer, labels = sgd(module, 1e-3), torch.arange(len(images)) % CLASSES

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()

    return step


def noise(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)


def cost(asked: Job, works: dict[str, Work], base: str) -> None:
    """Times everything in turns; tells milliseconds and ratios to ``base``."""
    times = medians(works, rounds=asked.rounds, warm=3)
    asked.tell(milliseconds=times, ratios=ratios(times, base))


def student(asked: Job, quantize: Quantize, export: Export) -> None:
    """From the float start: quantized, trained, asked for its predictions, exported."""
    data = arrays(asked.data)
    module = quantize(network_of(asked.network, asked.start), calibration(data))
    seconds = trained(module, data, asked)
    module.eval()
    np.save(Path(asked.out) / "torch.npy", predicted(module, data))
    asked.tell(training_seconds=seconds)
    export(module, calibration(data)[:1].contiguous(), str(Path(asked.out) / "student.onnx"))


def main(quantize: Quantize, export: Export) -> None:
    """A student, or the price of a training step beside that of the float network."""
    with job() as asked:
        if asked.task == "student":
            student(asked, quantize, export)
            return
        network, images = network_of(asked.network), noise(asked.batch)
        works = {"float": step_of(copy.deepcopy(network), images)}
        cost(asked, works | {asked.tool: step_of(quantize(network, images), images)}, "float")


def main_of_file(quantize: Callable[[str, np.ndarray, str], object]) -> None:
    """A student from the float ONNX file: its path, the calibration images, where the other one goes."""
    with job() as asked:
        images = calibration(arrays(asked.data)).contiguous().numpy()
        quantize(asked.floating, images, str(Path(asked.out) / "student.onnx"))
