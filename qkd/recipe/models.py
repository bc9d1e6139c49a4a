"""The content of a recipe after it was checked: frozen models in which every default is filled in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qkd.errors import Problem
from qkd.options import Bounds, Count, NotNegative, Positive, Seed, Share
from qkd.recipe.source import Key, Position, problem_at, split_key

if TYPE_CHECKING:
    from qkd.quantizers import Scheme
else:
    Scheme = Any  # it checks itself; so a recipe can be read without importing Brevitas

STUDENT = "student"
FLOAT, SCRATCH, FRESH = "float", "scratch", "fresh"
SAME = "same"


class Section(BaseModel):
    """A part of a recipe. The docstring of a field is its help text in editors, by way of the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Train(Section):
    """Optimizer, schedule, regularisation and augmentation of a training."""

    epochs: Count
    """Number of passes over the training split, all phases together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer: SGD with momentum, or AdamW."""
    rate: Positive = 0.05
    """The peak learning rate."""
    momentum: Share = 0.9
    """Momentum of the optimizer `sgd`."""
    nesterov: bool = True
    """Use Nesterov momentum (optimizer `sgd`)."""
    weight_decay: NotNegative = 1e-4
    """Weight decay (L2 penalty) on weights of two or more dimensions; never on scales, batch norm or importance weights."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning-rate schedule: cosine decay to zero, a tenth at each milestone, or constant."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Milestones of the schedule `step`, as fractions of a phase; the learning rate is divided by ten at each."""
    warmup: NotNegative = 0.0
    """Number of epochs at the start of a phase over which the learning rate rises linearly from zero."""
    clip: Positive | None = 5.0
    """The largest norm of the gradient; null: no clipping. At 2 bits a single large step can ruin a run."""
    clip_per: Literal["step", "network"] = "step"
    """What `clip` takes the norm over: all networks that an optimizer step trains together, or each network (head, exchange) by
    itself, so that a large gradient of a teacher does not shorten the student's step."""
    accumulate: Count = 1
    """Number of gradient-accumulation steps per batch, to need less memory; batch norm sees one part of the batch at a time."""
    ema: Annotated[float, Bounds(above=0, below=1)] | None = None
    """Decay per step of an exponential moving average of the deployed model's weights (0.999 is usual), which is deployed
    instead of them; null: no average."""
    dampen: NotNegative = 0.0
    """Final weight of the oscillation dampening of quantized weights, `sum ||Q(w) - w||^2`, which grows from zero along a
    cosine over each phase (up to 0.1 in the paper; at a rate of 0.05 that fixes all weights before the middle); 0: none."""
    scale_rate: NotNegative = 0.1
    """Learning rate of the quantizers' scales, as a fraction of the learning rate; at 1, the scales of 8-bit layers diverge."""
    augment: bool = True
    """Apply the augmentation the data set prescribes: random shifts or crops, and flips where they keep the class."""
    cutout: Count | None = None
    """Side in pixels of the square that cutout fills with the mean colour in each training image; null: no cutout."""
    randaugment: Annotated[int, Bounds(at_least=0, at_most=30)] | None = None
    """Magnitude of torchvision's RandAugment with two operations per training image (9 is usual); null: no RandAugment."""
    mixup: Positive | None = None
    """Alpha of the Beta(alpha, alpha) distribution of mixup's mixing weights (0.2 is usual); null: no mixup."""
    cutmix: Positive | None = None
    """Alpha of the Beta(alpha, alpha) distribution of the image share that cutmix keeps (1 is usual); null: no cutmix."""
    recompute: bool | tuple[str, ...] = False
    """Activation checkpointing, which needs less memory and more time: the names of the networks, or true for all."""
    reestimate: Literal["auto", True, False] = "auto"
    """Re-estimate batch-norm statistics with quantization on, over 20 batches, before a network is evaluated or teaches without
    learning; auto: for networks of 6 bits or fewer, and for quantized ones that exchange features."""


class Pretrain(Train):
    """The training of a float network before it is quantized, where a network starts from float."""

    epochs: Count = 10
    """Number of passes over the training split."""
    rate: Positive = 0.1
    """The peak learning rate."""
    weight_decay: NotNegative = 5e-4
    """Weight decay (L2 penalty) on weights of two or more dimensions; never on batch norm."""
    joint_epochs: Count | None = None
    """Epochs in which the method is then trained with every network in float, so that its heads (a projector, a fused classifier)
    are trained before they are quantized; null: heads begin with random weights."""


class MethodEntry(Section):
    """``name`` is a key of METHODS or ``file.py:Name``, ``options`` are the method's, all defaults filled in."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class NetworkEntry(Section):
    """``build`` and ``options`` are the name and the options for `qkd.networks.build.build`.

    ``quantize`` is the quantization scheme, None for a float network.
    """

    build: str
    options: dict[str, Any] = Field(default_factory=dict)
    quantize: Scheme | None = None
    start_from: str = FLOAT
    """What it begins with: `float` (the weights of a float network trained first), `scratch` (random ones), or a checkpoint."""
    start_head: Literal["loaded", "fresh"] = "loaded"
    """With a checkpoint: whether the classifier is `loaded` too, or left `fresh`, for another number of classes."""
    seed: Seed | Literal["same"] | None = None
    """Seed of the initial weights and of the float training: a number, `same` (the recipe's), or null: the recipe's for the
    student, for every other network one that follows from the recipe's and its name. Without effect with a checkpoint that
    is loaded whole."""

    @property
    def is_seeded(self) -> bool:
        """Whether its first weights depend on a seed; those of a whole checkpoint do not."""
        return not self.is_checkpoint or self.start_head == FRESH

    @property
    def is_checkpoint(self) -> bool:
        """Whether it starts from a file of weights."""
        return self.start_from not in (FLOAT, SCRATCH)


class ViewEntry(Section):
    """A network that has no parameters of its own: those of the network ``of``, seen otherwise. It teaches and never learns."""

    of: str
    """The name of the network whose parameters are seen: student, or a teacher that is no view itself."""
    activations: Annotated[int, Bounds(at_least=2, at_most=8)] | None = None
    """Bits of each quantizer of activations that has fewer, over the range it has; null: the bits of the network itself."""
    share: Annotated[float, Bounds(above=0, at_most=1)] = 1.0
    """The probability that a quantizer takes those bits, drawn for each quantizer and batch; else it keeps its own."""
    average: Annotated[float, Bounds(above=0, below=1)] | None = None
    """Decay per step of the exponential moving average of the parameters that is seen (0.999 is usual); null: no average."""
    dropout: Annotated[float, Bounds(at_least=0, below=1)] = 0.0
    """The probability that an entry of a quantized activation is zero, drawn anew for each batch; 0: no dropout."""

    @property
    def is_seen_otherwise(self) -> bool:
        """Whether anything is different from the network itself."""
        return self.activations is not None or self.average is not None or self.dropout > 0

    def __str__(self) -> str:
        """How the parameters are seen, in words."""
        return self._weights_and_bits() + f", dropout {self.dropout:g}" * (self.dropout > 0)

    def _weights_and_bits(self) -> str:
        weights = f"of {self.of}, " + ("the same weights" if self.average is None else f"average {self.average:g}")
        if self.activations is None:
            return weights
        often = "" if self.share == 1 else f" with probability {self.share:g}"
        return f"{weights}, activations at {self.activations} bits{often}"


class DataEntry(Section):
    """``name`` is a key of DATASETS or ``file.py:Name``, ``batch`` the batch size over all ranks."""

    name: str
    batch: Count = 128
    """Number of images per batch, over all ranks together."""
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """The file a recipe was read from and the positions of its keys there. Recipes that differ only in these are equal."""

    file: str = field(default="recipe", compare=False)
    positions: Mapping[Key, Position] = field(default_factory=dict, compare=False, repr=False)


class Recipe(Section):
    """A whole recipe. ``match`` maps each stage to the path of the module at which it ends, for every network."""

    method: MethodEntry
    student: NetworkEntry
    teachers: dict[str, NetworkEntry | ViewEntry] = Field(default_factory=dict)
    match: dict[str, dict[str, str]] = Field(default_factory=dict)
    data: DataEntry
    pretrain: Pretrain = Field(default_factory=Pretrain)
    train: Train
    seed: Seed = 0
    origin: Origin = Field(default_factory=Origin, exclude=True, repr=False)

    @property
    def name(self) -> str:
        """The name of the recipe's file without its suffix."""
        return Path(self.origin.file).stem

    @property
    def networks(self) -> dict[str, NetworkEntry | ViewEntry]:
        """The student and all teachers, by name."""
        return {STUDENT: self.student, **self.teachers}

    def key_of(self, part: str) -> Key:
        """Where the entry of a network stands in a recipe."""
        return (part,) if part == STUDENT else ("teachers", part)

    def seed_of(self, part: str) -> int:
        """The seed of a network's initial weights and of the training of its float start.

        Without a ``seed:`` of its own a teacher gets a number below 2^32 that depends on the recipe's seed and the teacher's
        name alone (SHA-256), so that networks of one architecture do not begin as copies of each other.
        """
        seed = self.owners[part].seed
        if seed == SAME or (seed is None and part == STUDENT):
            return self.seed
        if seed is None:
            return int.from_bytes(hashlib.sha256(f"{self.seed} {part}".encode()).digest()[:4], "big")
        return int(seed)

    def begin_equal(self, part: str, other: str) -> bool:
        """Whether two networks have the same float weights before training: one architecture, one start, one seed."""

        def start(name: str) -> tuple[object, ...]:
            entry = self.owners[name]
            seed = self.seed_of(name) if entry.is_seeded else None
            return entry.build, entry.options, entry.start_from, entry.start_head, seed

        return start(part) == start(other)

    @property
    def owners(self) -> dict[str, NetworkEntry]:
        """The networks that have parameters of their own, by name."""
        return {name: entry for name, entry in self.networks.items() if isinstance(entry, NetworkEntry)}

    @property
    def views(self) -> dict[str, ViewEntry]:
        """The networks that are views of others, by name."""
        return {name: entry for name, entry in self.networks.items() if isinstance(entry, ViewEntry)}

    def in_float(self) -> Recipe:
        """The same recipe with nothing quantized."""

        plain = {name: entry.model_copy(update={"quantize": None}) for name, entry in self.owners.items()}
        networks = {**self.networks, **plain}
        return self.model_copy(update={"student": networks.pop(STUDENT), "teachers": networks})

    def problem(self, key: str | Key, message: str) -> Problem:
        """A mistake at a key (``teachers.four.build``) and the line on which that stands."""
        words = tuple(key.split(".")) if isinstance(key, str) else key
        return problem_at(self.origin.file, dict(self.origin.positions), words, message)

    def problem_within(self, key: Key, message: str, *, other: str = "recipe") -> Problem:
        """A mistake whose message may begin with names of keys below ``key`` (``first: 9 is ...``), which are split off.

        If the key is empty then, the mistake is reported at ``other``.
        """
        found, rest = split_key(self.origin.positions, key, message)
        return self.problem(found or other, rest)
