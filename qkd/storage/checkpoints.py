"""Checkpoints of a run. The name of each file holds the checksum of its content, so damage is detected."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from qkd.errors import RunError
from qkd.storage.atomic import remove_unfinished, write_atomic

Kind = Literal["last", "best"]
"""``last``: to resume from. ``best``: with the best validation accuracy, to deploy."""
LAST: Kind = "last"
BEST: Kind = "best"
KEPT = 2  # checkpoints of each kind: if the newest is damaged, the one before is used
PATTERN = re.compile(r"(last|best)-(\d{9})-(part|whole)-([0-9a-f]{32})\.pt")


class CheckpointName(NamedTuple):
    """The parts of a checkpoint's file name; sorted, they are in the order of training."""

    steps: int
    extent: str  # "part" if it was saved during an epoch, "whole" at its end
    sha: str
    kind: str

    @classmethod
    def parse(cls, name: str) -> CheckpointName | None:
        """The parts of a file name; None if it is not that of a checkpoint."""
        found = PATTERN.fullmatch(name)
        return cls(int(found[2]), found[3], found[4], found[1]) if found else None

    def __str__(self) -> str:
        return f"{self.kind}-{self.steps:09}-{self.extent}-{self.sha}.pt"


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints, named ``last-<steps>-<part or whole>-<sha256>.pt`` and ``best-...``."""

    folder: Path

    def save(self, kind: Kind, state: Mapping[str, Any], *, steps: int, whole: bool = True) -> Path:
        """Save tensors and plain values; they are on the disk when this returns. -> the file. Raises RunError."""
        extent = "whole" if whole else "part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.folder}: cannot make the folder: {error.strerror}", key="file.cannot-write"
            ) from error
        return write_atomic(
            self.folder / kind,
            lambda file: torch.save(dict(state), file),  # type: ignore[arg-type]
            name=lambda sha: str(CheckpointName(steps, extent, sha[:32], kind)),
        )

    def files(self, kind: Kind) -> list[Path]:
        """The checkpoints of a kind, newest first, damaged ones included."""
        return [self.folder / str(name) for name in sorted(self._names(kind), reverse=True)]

    def load(self, kind: Kind) -> dict[str, Any] | None:
        """The newest intact checkpoint, read without executing code from it; None if there is no checkpoint.

        A damaged one is skipped, with a warning that names it. Raises RunError if all are damaged.
        """
        damaged: list[Path] = []
        for path in self.files(kind):
            if is_intact(path):
                for other in damaged:
                    logging.getLogger("qkd").warning("%s is damaged; going back to %s", other, path.name)
                return dict(torch.load(path, map_location="cpu", weights_only=True))
            damaged.append(path)
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise RunError(f"{self.folder}: every checkpoint is damaged ({names})", key="checkpoint.all-damaged")
        return None

    def prune(self) -> None:
        """Remove all but the newest two checkpoints of each kind."""
        for kind in (LAST, BEST):
            self._remove(self.files(kind)[KEPT:])

    def remove_after(self, steps: int, *, whole: bool) -> None:
        """Remove checkpoints later than the point at which training resumes, and partly written files.

        The point is after ``steps`` steps, at the end of an epoch if ``whole``.
        """
        remove_unfinished(self.folder)
        point = (steps, "whole" if whole else "part")
        for kind in (LAST, BEST):
            self._remove(
                [p for p in self.files(kind) if (n := CheckpointName.parse(p.name)) and (n.steps, n.extent) > point]
            )

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _names(self, kind: Kind) -> list[CheckpointName]:
        names = (CheckpointName.parse(path.name) for path in self.folder.glob(f"{kind}-*.pt"))
        return [name for name in names if name is not None]

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def is_intact(path: Path) -> bool:
    """Whether the checksum in a checkpoint's name is that of its content."""
    name = CheckpointName.parse(path.name)
    try:
        with path.open("rb") as file:
            return name is not None and hashlib.file_digest(file, "sha256").hexdigest().startswith(name.sha)
    except OSError:
        return False


__all__ = ["BEST", "LAST", "CheckpointName", "Checkpoints", "Kind", "is_intact"]
