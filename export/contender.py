"""Files that are timed against each other: each with its images, the runtime it runs in, and the file it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import onnxruntime

from qkd.errors import ExportError
from qkd.export.session import input_type, matching_input, only_input, open_session
from qkd.export.targets import OpenedFile, Runtime


class Images(NamedTuple):
    """Images (N, C, H, W) normalised, the same ones as uint8, and labels (N,); None for what there is not."""

    normalized: np.ndarray | None = None
    uint8: np.ndarray | None = None
    labels: np.ndarray | None = None


NO_IMAGES = Images()


@dataclass(frozen=True)
class Contender:
    """A file in one runtime.

    data: what it runs on; without images it gets noise of its input's shape. runtime: None for onnxruntime. baseline: the
    file, in the same runtime, over which its speed-up is computed; None for no speed-up.
    """

    path: Path
    data: Images = NO_IMAGES
    runtime: Runtime | None = None
    baseline: Path | None = None

    @property
    def where(self) -> str:
        """The name of the runtime."""
        return "onnxruntime" if self.runtime is None else self.runtime.name

    def open(self, threads: int) -> OpenedFile | onnxruntime.InferenceSession:
        """The file, opened in its runtime. Raises ExportError where that fails."""
        return (
            open_session(self.path, threads=threads) if self.runtime is None else self.runtime.open(self.path, threads)
        )

    def inputs(self, session: onnxruntime.InferenceSession) -> np.ndarray | None:
        """The images as the file takes them, given a session of it; None where there are none."""
        if self.data.normalized is None:
            return None
        return matching_input(session, self.data.normalized, self.data.uint8, self.path)

    def feed(self, session: onnxruntime.InferenceSession, batch: int) -> dict[str, np.ndarray]:
        """The inputs of one call with a batch of images, given a session of the file.

        Raises ExportError for a file that does not take such a batch, or whose images' size is not known.
        """
        name, wanted, kind = only_input(session, self.path), session.get_inputs()[0], input_type(session, self.path)
        fixed = wanted.shape[0]
        if isinstance(fixed, int) and fixed != batch:
            raise ExportError(
                f"{self.path}: takes batches of {fixed} only, not of {batch}; ask for that batch size",
                key="bench.fixed-batch",
            )
        images = self.inputs(session)
        if images is not None:
            chosen = np.resize(images, (batch, *images.shape[1:])) if len(images) < batch else images[:batch]
            return {name: np.ascontiguousarray(chosen, dtype=kind)}
        if not all(isinstance(size, int) for size in wanted.shape[1:]):
            raise ExportError(
                f"{self.path}: takes images of {wanted.shape[1:]}; give images, their size is not in the file",
                key="bench.unknown-size",
            )
        return {name: _noise((batch, *wanted.shape[1:]), kind)}


def _noise(shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    noise = np.random.default_rng(0).normal(scale=1.0, size=shape)
    return (noise if np.issubdtype(kind, np.floating) else 64 * np.abs(noise).clip(0, 1)).astype(kind)


def contenders(
    files: Iterable[str | Path],
    *,
    against: str | Path | Mapping[Path, Path] | None = None,
    images: Images | Mapping[Path, Images] = MappingProxyType({}),
    also_in: Runtime | None = None,
) -> list[Contender]:
    """The files, followed by those that they are compared with, each once.

    against: the float file, or one for each file; such a file is its own baseline. images: for all files, or for each.
    also_in: a second runtime, in which the same files follow once more.
    """
    named = [Path(file) for file in files]
    baselines = (
        dict(against) if isinstance(against, Mapping) else dict.fromkeys(named, Path(against)) if against else {}
    )
    last = dict.fromkeys(baselines.values())
    paths = [*(path for path in named if path not in last), *last]
    found = [
        Contender(path, _images_of(path, images), baseline=baselines.get(path, path if path in last else None))
        for path in paths
    ]
    return found if also_in is None else [*found, *_moved_to(found, also_in)]


def _images_of(path: Path, images: Images | Mapping[Path, Images]) -> Images:
    return images if isinstance(images, Images) else images.get(path, NO_IMAGES)


def _moved_to(found: Sequence[Contender], runtime: Runtime) -> list[Contender]:
    return [dataclasses.replace(each, runtime=runtime) for each in found]
