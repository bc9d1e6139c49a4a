"""The run folder: recipe, environment, metrics, checkpoints, product. Nothing in it is ever overwritten by another run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qkd import __version__
from qkd.errors import RunError

RECIPE, ORIGINAL, ENVIRONMENT, DATA = "recipe.yaml", "recipe.orig.yaml", "environment.json", "data.json"
METRICS, PRODUCT, RESULT = "metrics.jsonl", "product.safetensors", "result.json"
LAST, BEST = "checkpoints/last.pt", "checkpoints/best.pt"


@dataclass(frozen=True)
class Run:
    """One folder. Writes are atomic: a reader sees the old file or the new one, never half of one."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Run:
        """A new folder, or ``folder-2``, ``folder-3``, ... if there is one already. Raises RunError if it cannot be made."""
        for number in range(1, 10_000):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                (candidate / "checkpoints").mkdir(parents=True, exist_ok=False)
            except FileExistsError:
                continue
            except OSError as error:
                raise RunError(f"{candidate}: cannot make the run folder: {error.strerror}") from error
            return cls(candidate)
        raise RunError(f"{folder}: ten thousand runs of this name; choose another with --out")

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run. Raises RunError if the folder is none."""
        if not (folder / RECIPE).is_file():
            what = "no such folder" if not folder.is_dir() else f"not a run folder, it has no {RECIPE}"
            raise RunError(f"{folder}: {what}; `qkd train` makes one")
        return cls(folder)

    def write(self, name: str, content: bytes | str) -> Path:
        """Put a file in place at once: written beside it, synced, then renamed."""
        path = self.folder / name
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise RunError(f"{path}: cannot write: {error.strerror}; what was there before is untouched") from error
        return path

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        return self.write(name, json.dumps(content, indent=2, sort_keys=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise RunError(f"{path}: missing; the run did not get that far") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: not readable as JSON: {error}") from error

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        path = self.folder / METRICS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def forget_after(self, steps: int) -> None:
        """Drop the lines of metrics that a resumed run is about to write again."""
        kept = [line for line in self.metrics() if line.get("steps", 0) <= steps]
        self.write(METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def save_state(self, name: str, state: Mapping[str, Any]) -> None:
        """A checkpoint of tensors and plain values."""
        path = self.folder / name
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            torch.save(dict(state), beside)
            beside.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            beside.unlink(missing_ok=True)
            raise RunError(f"{path}: cannot write the checkpoint: {error}; the one before is untouched") from error

    def load_state(self, name: str) -> dict[str, Any]:
        """A checkpoint, read without executing anything from it."""
        path = self.folder / name
        if not path.is_file():
            raise RunError(f"{path}: no checkpoint; the run did not get that far")
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise RunError(f"{path}: not readable as a checkpoint: {str(error).splitlines()[0]}") from error

    def save_product(self, state: Mapping[str, Tensor]) -> None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        self.write(PRODUCT, save(tensors, metadata={"qkd": __version__}))

    def load_product(self) -> dict[str, Tensor]:
        path = self.folder / PRODUCT
        if not path.is_file():
            raise RunError(f"{path}: missing; the run is not finished, `qkd train --resume` goes on with it")
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise RunError(f"{path}: damaged: {error}") from error


def environment(**more: Any) -> dict[str, Any]:
    """Facts that a result depends on: versions, processor, threads."""
    return {
        "qkd": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        **{name: _version(name) for name in ("torch", "torchvision", "brevitas", "onnx", "onnxruntime", "numpy")},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": " ".join(["qkd", *sys.argv[1:]]),
        **more,
    }


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name, and whether it has the 8-bit dot product that integer inference lives on."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    vnni = "vnni" in facts.get("flags", "")
    return f"{facts.get('model name', platform.machine())} ({'VNNI' if vnni else 'no VNNI'})"
