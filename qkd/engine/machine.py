"""Machine: where and how to compute; nothing of it is in a recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from qkd.engine.ranks import launched
from qkd.errors import UsageError

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
SAVE_EVERY = 10.0
Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Machine:
    """``save_every``: minutes between checkpoints inside an epoch (behind each epoch there is one anyway)."""

    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    compile: Compile = "auto"
    save_every: float = SAVE_EVERY
    tensorboard: bool = False

    def fabric(self) -> Any:
        """Fabric on this machine; under `torchrun` connected to the other ranks. Raises UsageError for what is not there."""
        import lightning_fabric

        if self.threads:
            torch.set_num_threads(self.threads)
        accelerator, _, index = self.device.partition(":")
        settings: dict[str, Any] = {"accelerator": accelerator, "precision": PRECISIONS[self.precision]}
        ranks = launched()
        if ranks > 1:
            from qkd.engine.strategy import Averaging

            here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
            settings |= {"devices": here, "num_nodes": ranks // here, "strategy": Averaging()}
        else:
            settings["devices"] = [int(index)] if index else 1
        try:
            fabric = lightning_fabric.Fabric(**settings)
            fabric.launch()
        except (RuntimeError, ValueError, lightning_fabric.utilities.exceptions.MisconfigurationException) as error:
            words = next(iter(str(error).splitlines()), type(error).__name__)
            raise UsageError(f"--device {self.device} --precision {self.precision}: {words}") from error
        return fabric
