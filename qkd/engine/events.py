"""Events: what training reports while it runs. An event prints as the line that a person reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """``is_warning``: to be shown even where progress is not."""

    is_warning: ClassVar[bool] = False


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that does nothing."""


@dataclass(frozen=True)
class StepTaken(Event):
    """Some steps of a phase are done: ``progress`` 0..1 of it, in the epoch counted from 0."""

    phase: str
    progress: float
    epoch: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.phase}, epoch {self.epoch + 1}/{self.epochs}"


@dataclass(frozen=True)
class EpochEnded(Event):
    """``metrics``: the line that an epoch adds to ``metrics.jsonl``."""

    metrics: Mapping[str, Any]

    def __str__(self) -> str:
        found = self.metrics
        losses = {name.removeprefix("train/loss/"): v for name, v in found.items() if name.startswith("train/loss/")}
        listed = "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
        epoch = f"{found['phase']} {found['epoch']:>3}/{found['epochs']}"
        return f"{epoch}  val {found['val/top1']:6.2f} %  {found['images_per_second']:.0f} images/s  {listed}"


@dataclass(frozen=True)
class FloatCached(Event):
    """The float weights of a network come from the cache."""

    part: str
    build: str

    def __str__(self) -> str:
        return f"{self.part}: float {self.build} taken from the cache"


@dataclass(frozen=True)
class CheckpointLoaded(Event):
    """The float weights of a network come from a file; ``taken`` says which of what is in it."""

    part: str
    path: str
    taken: str

    def __str__(self) -> str:
        return f"{self.part}: loaded {self.path}: {self.taken}"


@dataclass(frozen=True)
class PretrainingStarted(Event):
    """A float network is trained, to be kept in the cache."""

    part: str
    build: str
    epochs: int

    def __str__(self) -> str:
        return f"{self.part}: training float {self.build} for {self.epochs} epochs (kept for later runs)"


@dataclass(frozen=True)
class JointStartCached(Event):
    """The weights with which all networks and heads begin, trained together in float, come from the cache."""

    method: str

    def __str__(self) -> str:
        return f"{self.method} in float taken from the cache"


@dataclass(frozen=True)
class JointTrainingStarted(Event):
    """All networks and heads are trained together in float, before anything is quantized."""

    method: str
    epochs: int

    def __str__(self) -> str:
        return f"training {self.method} in float for {self.epochs} epochs, before anything is quantized"


@dataclass(frozen=True)
class AlreadyFinished(Event):
    """There is nothing to resume in a run folder."""

    run: str

    def __str__(self) -> str:
        return f"{self.run}: is finished; nothing to resume"


@dataclass(frozen=True)
class Resumed(Event):
    """A run continues behind a step. ``changed``: what differs from before and changes the numbers."""

    steps: int
    changed: Sequence[str] = ()

    def __str__(self) -> str:
        line = f"resumed after step {self.steps}"
        if not self.changed:
            return line
        changed = "; ".join(self.changed)
        return f"{line}\nwarning: the result will differ from that of a run without interruption: {changed}"


@dataclass(frozen=True)
class RanksConnected(Event):
    """Several processes train together, each with its part of every batch."""

    ranks: int
    batch: int
    rate: float

    def __str__(self) -> str:
        each = self.batch // self.ranks
        return f"{self.ranks} ranks: batches of {self.batch}, {each} per rank, rate {self.rate:g}"


@dataclass(frozen=True)
class PlanChecked(Event):
    """What in a recipe is unused or begins as a copy, and what of its product will stay float."""

    lines: Sequence[str]
    is_warning = True

    def __str__(self) -> str:
        return "\n".join(f"warning: {line}" for line in self.lines)


@dataclass(frozen=True)
class Calibrated(Event):
    """All networks are calibrated. ``top1``: of the product on the test split, in percent."""

    top1: float

    def __str__(self) -> str:
        return f"calibrated: {self.top1:.2f} % on test before training"


@dataclass(frozen=True)
class CompilationStarted(Event):
    stages: int

    def __str__(self) -> str:
        return f"compiling {self.stages} stages; the first steps take longer"


@dataclass(frozen=True)
class CompilationFailed(Event):
    """Training continues without compiled stages."""

    why: str

    def __str__(self) -> str:
        return f"not compiled: {self.why}"


@dataclass(frozen=True)
class DeltasEstimated(Event):
    """EWGS's delta of a network, from the Hessian."""

    part: str
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.part}: delta of EWGS from the Hessian, {self.least:.2g} to {self.most:.2g}"


@dataclass(frozen=True)
class BitsLowered(Event):
    """A bit schedule goes to fewer bits; epochs are counted from 0."""

    epoch: int

    def __str__(self) -> str:
        return f"fewer bits from epoch {self.epoch + 1} on"


@dataclass(frozen=True)
class QuantizersBroken(Event):
    """Quantizers that are dead, saturated or not finite, seen for the first time; epochs are counted from 1."""

    lines: Sequence[str]
    epoch: int
    is_warning = True

    def __str__(self) -> str:
        return "\n".join(f"warning: quantizer {line} (after epoch {self.epoch})" for line in self.lines)
