"""What a recipe holds once it is checked: frozen, complete, with no name left open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qkd.errors import Problem
from qkd.options import Bounds, Count, NotNegative, Positive, Seed, Share
from qkd.recipe.source import Key, Place, problem_at, split_key

if TYPE_CHECKING:
    from qkd.quantizers import Scheme
else:
    Scheme = Any  # checked by Scheme itself; a recipe can be read without the weight of Brevitas

STUDENT = "student"
FLOAT, SCRATCH = "float", "scratch"


class Section(BaseModel):
    """A part of a recipe; the text below a field is its help in editors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Train(Section):
    """How long and how fast everybody learns."""

    epochs: Count
    """Times through the training data, all phases together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    rate: Positive = 0.05
    """The learning rate at its highest."""
    momentum: Share = 0.9
    """Of sgd."""
    nesterov: bool = True
    """Whether this momentum is Nesterov's."""
    weight_decay: NotNegative = 1e-4
    """On weights of two and more dimensions; never on scales, batch norm or importance."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the rate falls: as a cosine to zero, by ten at every milestone, or not at all."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Of the schedule `step`: the shares of the epochs at which the rate falls to a tenth."""
    warmup: NotNegative = 0.0
    """Epochs in which the rate rises from zero."""
    clip: Positive | None = 5.0
    """The largest norm of the gradient of all that one optimizer step moves, of all networks that learn together; null
    leaves it as it is. At 2 bits one large step can cost the run."""
    accumulate: Count = 1
    """Pieces a batch is computed in, one after another, to need less memory; batch norm sees a piece at a time."""
    ema: Annotated[float, Bounds(above=0, below=1)] | None = None
    """Deploy the product's weights averaged over steps with this decay (0.999); null: as they are."""
    scale_rate: NotNegative = 0.1
    """What the scales of quantizers learn with, as a share of the rate; at 1, scales of 8-bit layers are carried away."""
    augment: bool = True
    """Shift (and mirror) images, as far as the data set allows."""
    cutout: Count | None = None
    """The side in pixels of a square painted over in each training image; null: none."""
    randaugment: Annotated[int, Bounds(at_least=0, at_most=30)] | None = None
    """Two random operations of torchvision's RandAugment on each training image, in this magnitude (9); null: none."""
    mixup: Positive | None = None
    """Mix each training image and its label with another one; the share is drawn from Beta(a, a) of this a (0.2)."""
    cutmix: Positive | None = None
    """Paste a box of another image into each training image, and of its label as much; the share as for mixup (1)."""
    recompute: bool | tuple[str, ...] = False
    """Networks (or true: all) that compute activations again for the gradient instead of keeping them: less memory, more time."""
    reestimate: Literal["auto", True, False] = "auto"
    """Estimate batch-norm statistics anew with rounding on, before each evaluation; auto: at 4 bits and below."""


class Pretrain(Train):
    """How a network that starts from float learns before it is quantized."""

    epochs: Count = 10
    rate: Positive = 0.1
    weight_decay: NotNegative = 5e-4


class MethodEntry(Section):
    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class NetworkEntry(Section):
    """``build`` and ``options`` are what `qkd.networks.build.build` takes. ``quantize`` None: it stays in float.

    ``start_from`` is ``float`` (train the float network first), ``scratch``, or the path of a checkpoint.
    """

    build: str
    options: dict[str, Any] = Field(default_factory=dict)
    quantize: Scheme | None = None
    start_from: str = FLOAT


class DataEntry(Section):
    name: str
    batch: Count = 128
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """The file a recipe came from and where its keys stand there. Recipes that differ only in that are equal."""

    file: str = field(default="recipe", compare=False)
    places: Mapping[Key, Place] = field(default_factory=dict, compare=False, repr=False)


class Recipe(Section):
    """A whole recipe. ``match`` maps each stage to the module path it ends at in every network."""

    method: MethodEntry
    student: NetworkEntry
    teachers: dict[str, NetworkEntry] = Field(default_factory=dict)
    match: dict[str, dict[str, str]] = Field(default_factory=dict)
    data: DataEntry
    pretrain: Pretrain = Field(default_factory=Pretrain)
    train: Train
    seed: Seed = 0
    origin: Origin = Field(default_factory=Origin, exclude=True, repr=False)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.origin.file).stem

    @property
    def networks(self) -> dict[str, NetworkEntry]:
        """The student and all teachers, by name."""
        return {STUDENT: self.student, **self.teachers}

    def problem(self, key: str | Key, message: str) -> Problem:
        """A mistake at a key (``teachers.four.build``), at the line it was written in."""
        words = tuple(key.split(".")) if isinstance(key, str) else key
        return problem_at(self.origin.file, dict(self.origin.places), words, message)

    def problem_within(self, key: Key, message: str, *, other: str = "recipe") -> Problem:
        """A mistake at the key below ``key`` that the message names in front; at ``other`` where that is none at all."""
        found, said = split_key(self.origin.places, key, message)
        return self.problem(found or other, said)
