"""Machine: where and how to compute; nothing of it is in a recipe."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from typing import Any, Literal

from qkd.errors import UsageError

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
SAVE_EVERY = 10.0
Compile = Literal["auto", "on", "off"]


def world_size() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Machine:
    """``save_every``: minutes between checkpoints inside an epoch (behind each epoch there is one anyway).

    ``loggers``: the tools that get the metrics of every epoch, of `qkd.engine.loggers.LOGGERS`. ``workers``: processes
    that decode images which do not lie in memory; None for one per processor, at most eight.
    """

    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    compile: Compile = "auto"
    save_every: float = SAVE_EVERY
    loggers: tuple[str, ...] = ()
    workers: int | None = None

    def fabric(self) -> Any:
        """Fabric on this machine; under `torchrun` connected to the other ranks. Raises UsageError for what is not there."""
        import lightning_fabric
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        keep_memory()
        accelerator, _, index = self.device.partition(":")
        settings: dict[str, Any] = {"accelerator": accelerator, "precision": PRECISIONS[self.precision]}
        ranks = world_size()
        if ranks > 1:
            from qkd.engine.fabric_strategy import AveragingStrategy

            here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
            settings |= {"devices": here, "num_nodes": ranks // here, "strategy": AveragingStrategy()}
        else:
            settings["devices"] = [int(index)] if index else 1
        wrong = lightning_fabric.utilities.exceptions.MisconfigurationException
        try:
            fabric = lightning_fabric.Fabric(**settings)
            fabric.launch()
        except (RuntimeError, ValueError, TypeError, ImportError, wrong) as error:
            words = next(iter(str(error).splitlines()), type(error).__name__)
            message = f"--device {self.device} --precision {self.precision}: {words}"
            raise UsageError(message, key="device.not-available") from error
        return fabric

    def facts(self, fabric: Any) -> dict[str, Any]:
        """What of it the numbers of a run depend on, beside the threads."""
        device = {"device": fabric.device.type, "ranks": fabric.world_size}
        return {**device, "precision": self.precision, "compile": self.compile}


def keep_memory() -> None:
    """Let this process keep memory that it frees, where the C library is glibc; elsewhere nothing happens.

    Every step frees and takes the same tensors. Left alone, glibc gives large ones back each time, and the system has to
    clear and map their pages again: on the CPU up to a tenth of a step, more for what keeps more tensors.
    """
    trim, map_from = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        setting = ctypes.CDLL(None).mallopt
        setting(trim, 2**31 - 1)
        setting(map_from, 2**30) or setting(map_from, 2**25)  # older ones take no more
