"""The run folder: recipe, environment, metrics, checkpoints and deployed model. A run never writes to another's folder."""

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
    """The folder of one run. Files are written atomically.

    ``writes`` is true for one of the processes that train together; the others only read the folder.
    """

    folder: Path
    writes: bool = True

    @classmethod
    def create(cls, folder: Path) -> Run:
        """Create the folder, or ``folder-2``, ``folder-3``, ... if there already is one that is not empty.

        Raises RunError if it cannot be created.
        """
        folder = folder if folder.name not in ("", "..") else folder.resolve()  # a name to which a number can be added
        for number in range(1, 10_000):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                if candidate.exists() and any(candidate.iterdir()):
                    continue
                (candidate / CHECKPOINTS).mkdir(parents=True, exist_ok=False)
            except FileExistsError:
                continue
            except OSError as error:
                message = f"{candidate}: cannot make the run folder: {error.strerror}"
                raise RunError(message, key="run.cannot-make-folder") from error
            return cls(candidate)
        raise RunError(
            f"{folder}: ten thousand runs of this name; choose another with --out", key="run.too-many-of-a-name"
        )

    def remove_untrained(self) -> None:
        """Remove a run that failed before training began: one that has neither metrics nor checkpoints.

        Only files that a run writes are removed, and the folder if nothing else is in it.
        """
        metrics = self.folder / METRICS  # created, empty, before the plan is checked
        trained = (metrics.is_file() and metrics.stat().st_size) or any((self.folder / CHECKPOINTS).glob("*.pt"))
        if not trained:
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
            with contextlib.suppress(OSError):
                for name in (RECIPE, ORIGINAL_RECIPE, ENVIRONMENT, DATA, METRICS):
                    (self.folder / name).unlink(missing_ok=True)
                self.folder.rmdir()

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in an existing folder. Raises RunError if it is not a run folder."""
        if not (folder / RECIPE).is_file():
            reason = "no such folder" if not folder.is_dir() else f"not a run folder, it has no {RECIPE}"
            raise RunError(f"{folder}: {reason}; `qkd train` makes one", key="run.not-a-run-folder")
        return cls(folder)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(self.folder / CHECKPOINTS)

    @property
    def finished(self) -> bool:
        """Whether the run is complete and has a deployed model. Raises RunError if result.json is damaged."""
        return (self.folder / PRODUCT).is_file() and bool(self.result().get("finished", True))

    def result(self) -> dict[str, Any]:
        """The content of result.json, ``{"finished": False}`` if there is none yet. Raises RunError if it is damaged."""
        return self.read_json(RESULT) if (self.folder / RESULT).is_file() else {"finished": False}

    def write_file(self, name: str, content: bytes | str) -> Path:
        """Write a file of the run atomically. -> its path. Raises RunError."""
        path = self.folder / name
        if self.writes:
            write_atomic(path, lambda file: file.write(content.encode() if isinstance(content, str) else content))
        return path

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """As `write_file`, for an object as JSON."""
        return self.write_file(name, json.dumps(content, indent=2, sort_keys=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of the run. Raises RunError if it is missing or damaged."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise RunError(f"{path}: missing; the run did not get that far", key="run.missing-file") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: damaged, not readable as JSON: {error}", key="run.damaged-file") from error
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise RunError(f"{path}: damaged: it holds a {kind}, not an object", key="run.damaged-file")
        return content

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and sync it to the disk. Raises RunError."""
        if not self.writes:
            return
        path = self.folder / METRICS
        try:
            with path.open("a") as file:
                file.write(json.dumps(values) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            message = f"{path}: cannot write: {error.strerror}; the last checkpoint is untouched"
            raise RunError(message, key="file.cannot-write") from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a partial one that a killed process may have left."""
        path = self.folder / METRICS
        found = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(dict(json.loads(line)))
        return found

    def remove_metrics_after(self, steps: int, *, whole: bool) -> None:
        """Remove the lines of metrics after ``steps`` steps, which a resumed run writes again.

        If not ``whole``, training resumes within an epoch, so that a line at ``steps`` is removed as well.
        """
        limit = steps if whole else steps - 1
        kept = [line for line in self.metrics() if line.get("steps", 0) <= limit]
        self.write_file(METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def save_product(self, state: Mapping[str, Tensor]) -> None:
        """Write the weights of the deployed model. Raises RunError."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        self.write_file(PRODUCT, save(tensors, metadata={"qkd": __version__}))

    def load_product(self) -> dict[str, Tensor]:
        """The weights of the deployed model. Raises RunError if they are missing or damaged."""
        path = self.folder / PRODUCT
        if not path.is_file():
            message = f"{path}: missing; the run is not finished, `qkd train --resume` goes on with it"
            raise RunError(message, key="run.not-finished")
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise RunError(f"{path}: damaged: {error}", key="run.damaged-file") from error
