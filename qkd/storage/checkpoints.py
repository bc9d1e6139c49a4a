"""Checkpoints: states of a run that can be trusted. Each file carries its checksum in its name."""

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
LAST: Kind = "last"
BEST: Kind = "best"
KEPT = 2  # generations of each kind: should the newest be damaged, there is the one before
PATTERN = re.compile(r"(last|best)-(\d{9})-(part|whole)-([0-9a-f]{32})\.pt")


class Name(NamedTuple):
    """What the name of a checkpoint says: sorted by it, checkpoints are in the order of training."""

    steps: int
    extent: str  # "part" of an epoch was done, or the "whole" of it
    sha: str
    kind: str

    @classmethod
    def parse(cls, name: str) -> Name | None:
        found = PATTERN.fullmatch(name)
        return cls(int(found[2]), found[3], found[4], found[1]) if found else None

    def __str__(self) -> str:
        return f"{self.kind}-{self.steps:09}-{self.extent}-{self.sha}.pt"


@dataclass(frozen=True)
class Checkpoints:
    """A folder of them: ``last-<steps>-<part or whole>-<sha256>.pt`` to go on from, ``best-...`` to deploy."""

    folder: Path

    def save(self, kind: Kind, state: Mapping[str, Any], *, steps: int, whole: bool = True) -> Path:
        """A checkpoint of tensors and plain values; the disk holds it when this returns. Raises RunError."""
        extent = "whole" if whole else "part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot make the folder: {error.strerror}") from error
        return write_atomic(
            self.folder / kind,
            lambda file: torch.save(dict(state), file),  # type: ignore[arg-type]
            name=lambda sha: str(Name(steps, extent, sha[:32], kind)),
        )

    def files(self, kind: Kind) -> list[Path]:
        """The checkpoints of a kind, newest first; those whose content is not what their name says included."""
        return [self.folder / str(name) for name in sorted(self._names(kind), reverse=True)]

    def load(self, kind: Kind) -> dict[str, Any] | None:
        """The newest sound checkpoint, read without executing anything from it; None where there never was one.

        A damaged one is named in a warning and passed over. Raises RunError if all are damaged.
        """
        damaged: list[Path] = []
        for path in self.files(kind):
            if is_intact(path):
                for other in damaged:
                    logging.getLogger("qkd").warning("%s is damaged; going back to %s", other, path.name)
                return dict(torch.load(path, map_location="cpu", weights_only=True))
            damaged.append(path)
        if damaged:
            raise RunError(f"{self.folder}: every checkpoint is damaged ({', '.join(p.name for p in damaged)})")
        return None

    def prune(self) -> None:
        """Keep the newest generations of each kind."""
        for kind in (LAST, BEST):
            self._remove(self.files(kind)[KEPT:])

    def forget_after(self, steps: int, *, whole: bool) -> None:
        """Drop what was saved behind a point from which training is about to go on, and what was left half written."""
        remove_unfinished(self.folder)
        point = (steps, "whole" if whole else "part")
        for kind in (LAST, BEST):
            self._remove([p for p in self.files(kind) if (n := Name.parse(p.name)) and (n.steps, n.extent) > point])

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _names(self, kind: Kind) -> list[Name]:
        names = (Name.parse(path.name) for path in self.folder.glob(f"{kind}-*.pt"))
        return [name for name in names if name is not None]

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint's content is what its name says."""
    name = Name.parse(path.name)
    try:
        with path.open("rb") as file:
            return name is not None and hashlib.file_digest(file, "sha256").hexdigest().startswith(name.sha)
    except OSError:
        return False


__all__ = ["BEST", "LAST", "Checkpoints", "Kind", "Name", "is_intact"]
