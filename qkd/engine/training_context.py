"""Training context: everything that the loop needs, put together once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qkd.assembly.ensemble import Ensemble
from qkd.data.augment import ExtraAugmentations
from qkd.distill.plan import Plan, epochs_per_phase
from qkd.engine.distributed import shard
from qkd.engine.events import Listener, ignore
from qkd.engine.state import TrainingState
from qkd.errors import PlanError, nearest
from qkd.storage.checkpoints import Checkpoints
from qkd.storage.run import Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qkd.data import Batch, Data
    from qkd.engine.device import Compile
    from qkd.recipe import Train

SAVE_EVERY = 600.0  # seconds between checkpoints inside an epoch


@dataclass(frozen=True)
class Training:
    """An ensemble, its plan, data and settings. Without ``checkpoints`` nothing is kept but the ensemble's last state.

    ``choose``: end with the checkpoint that was best on the validation split rather than with the last state.
    ``reestimated``: the networks whose batch-norm statistics are re-estimated before they are evaluated or teach.
    """

    ensemble: Ensemble
    plan: Plan
    data: Data
    settings: Train
    batch: int
    seed: int
    fabric: Fabric
    run: Run | None = None
    checkpoints: Checkpoints | None = None
    choose: bool = True
    reestimated: frozenset[str] = frozenset()
    max_steps: int | None = None
    save_every: float = SAVE_EVERY
    compile: Compile = "off"
    listen: Listener = ignore

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs of each phase."""
        return epochs_per_phase(self.plan, self.settings.epochs)

    @property
    def batches_per_epoch(self) -> int:
        return self.data.num_train_batches(self.batch, self.fabric.world_size)

    @property
    def reestimates_product(self) -> bool:
        """Whether the product has a network whose batch-norm statistics are re-estimated."""
        return bool(self.plan.product_parts & self.reestimated)

    @property
    def augmentations(self) -> ExtraAugmentations:
        """What the recipe adds to the augmentation of the data set."""
        settings = self.settings
        return ExtraAugmentations(settings.cutout, settings.randaugment, settings.mixup, settings.cutmix)

    def images(self, seed: int, **more: Any) -> Iterator[Batch]:
        """This rank's part of the training split once through, shuffled by a seed and augmented."""
        return self.data.train_batches(
            self.batch,
            seed=seed,
            device=self.device,
            augment=self.settings.augment,
            extra=self.augmentations,
            shard=shard(self.fabric),
            **more,
        )

    @property
    def recomputed(self) -> frozenset[str]:
        """The networks that recompute activations instead of keeping them. Raises PlanError for unknown names and for views
        of other networks, which keep none."""
        given, networks = self.settings.recompute, self.ensemble.owners
        if isinstance(given, bool):
            return frozenset(networks if given else ())
        for name in given:
            if name not in networks:
                raise PlanError(
                    f"train.recompute: no network {name!r}{nearest(name, networks)}; there are {', '.join(networks)}",
                    key="train.recompute.no-such-network",
                )
        return frozenset(given)

    def exhausted(self, state: TrainingState) -> bool:
        """Whether ``max_steps`` are done."""
        return self.max_steps is not None and state.steps >= self.max_steps
