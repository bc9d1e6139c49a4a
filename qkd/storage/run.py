"""The run folder: recipe, environment, metrics, checkpoints, product. Nothing in it is ever overwritten by another run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qkd import __version__
from qkd.errors import RunError
from qkd.storage.artifacts import CHECKPOINTS, DATA, ENVIRONMENT, METRICS, ORIGINAL_RECIPE, PRODUCT, RECIPE, RESULT
from qkd.storage.atomic import write_atomic
from qkd.storage.checkpoints import Checkpoints


@dataclass(frozen=True)
class Run:
    """One folder. Writes are atomic: a reader sees the old file or the new one, never half of one.

    Of several processes that train together one ``writes``; to the others the folder is there to read.
    """

    folder: Path
    writes: bool = True

    @classmethod
    def create(cls, folder: Path) -> Run:
        """A new or empty folder, or ``folder-2``, ``folder-3``, ... if there is one with anything in it already.

        Raises RunError if it cannot be made.
        """
        folder = folder if folder.name not in ("", "..") else folder.resolve()  # whose name can be numbered
        for number in range(1, 10_000):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                if candidate.exists() and any(candidate.iterdir()):
                    continue
                (candidate / CHECKPOINTS).mkdir(parents=True, exist_ok=False)
            except FileExistsError:
                continue
            except OSError as error:
                raise RunError(f"{candidate}: cannot make the run folder: {error.strerror}") from error
            return cls(candidate)
        raise RunError(f"{folder}: ten thousand runs of this name; choose another with --out")

    def abandon(self) -> None:
        """Remove a run that a mistake ended before anything was learned; one that holds anything worth keeping stays.

        Of the folder only what a run writes is removed: what somebody else put there is not ours.
        """
        metrics = self.folder / METRICS  # begun, empty, before the plan is looked at
        learned = (metrics.is_file() and metrics.stat().st_size) or any((self.folder / CHECKPOINTS).glob("*.pt"))
        if not learned:
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
            with contextlib.suppress(OSError):
                for name in (RECIPE, ORIGINAL_RECIPE, ENVIRONMENT, DATA, METRICS):
                    (self.folder / name).unlink(missing_ok=True)
                self.folder.rmdir()

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run. Raises RunError if the folder is none."""
        if not (folder / RECIPE).is_file():
            what = "no such folder" if not folder.is_dir() else f"not a run folder, it has no {RECIPE}"
            raise RunError(f"{folder}: {what}; `qkd train` makes one")
        return cls(folder)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / CHECKPOINTS)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, product and all. Raises RunError where what it says of its end is damaged."""
        return (self.folder / PRODUCT).is_file() and bool(self.result().get("finished", True))

    def result(self) -> dict[str, Any]:
        """What the run says of its end, ``{"finished": False}`` before. Raises RunError where that is damaged."""
        return self.read_json(RESULT) if (self.folder / RESULT).is_file() else {"finished": False}

    def write(self, name: str, content: bytes | str) -> Path:
        """Put a file in place at once. Raises RunError, and leaves what was there, where that fails."""
        path = self.folder / name
        if self.writes:
            write_atomic(path, lambda file: file.write(content.encode() if isinstance(content, str) else content))
        return path

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        return self.write(name, json.dumps(content, indent=2, sort_keys=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The object that a file holds. Raises RunError where it is missing or damaged."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise RunError(f"{path}: missing; the run did not get that far") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: damaged, not readable as JSON: {error}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path}: damaged: it holds a {type(content).__name__}, not an object")
        return content

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        if not self.writes:
            return
        path = self.folder / METRICS
        try:
            with path.open("a") as file:
                file.write(json.dumps(values) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path}: cannot write: {error.strerror}; the last checkpoint is untouched") from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the metrics; half a line, which a process that was killed may have left, is none."""
        path = self.folder / METRICS
        found = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(dict(json.loads(line)))
        return found

    def forget_after(self, steps: int, *, whole: bool) -> None:
        """Drop the lines of metrics that a resumed run is about to write again.

        Not ``whole``: training goes on in the middle of an epoch, so no epoch has ended at ``steps`` yet.
        """
        limit = steps if whole else steps - 1
        kept = [line for line in self.metrics() if line.get("steps", 0) <= limit]
        self.write(METRICS, "".join(json.dumps(line) + "\n" for line in kept))

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
