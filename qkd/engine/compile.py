"""Compile: torch.compile, a stage at a time, where a run is long enough to pay for it.

Stages are the unit: taps lie between them, and no graph depends on which other networks run. Only training steps are
compiled; evaluation and calibration run the network itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qkd.distill.plan import networks_needed
from qkd.distill.stages import Staged
from qkd.engine.device import Compile
from qkd.errors import TrainingError
from qkd.quantizers import disabled

if TYPE_CHECKING:
    from qkd.engine.training_context import Training

ENOUGH = {"cpu": 3e13, "cuda": 1e17}
"""Floating-point operations of a whole run, forward alone, from which on compiling pays by itself: about an hour on one
CPU thread, a quarter of one on a GPU. A fixed count, not a clock, so that the same run is always decided alike."""


def should_compile(training: Training, choice: Compile) -> bool:
    """Whether to compile stages. ``auto`` counts operations, and stays eager on several ranks."""
    if choice != "auto":
        return choice == "on"
    if training.fabric.world_size > 1 or training.device.type not in ENOUGH:
        return False
    return operations(training) >= ENOUGH[training.device.type]


@torch.no_grad()
def operations(training: Training) -> float:
    """Floating-point operations of all forward passes of a run."""
    images = torch.zeros(1, *training.data.shape, device=training.device)
    training.ensemble.eval()
    cost: dict[str, int] = {}
    for name, network in training.ensemble.networks.items():
        with FlopCounterMode(display=False) as counter, disabled(network):
            network.network(images)
        cost[name] = counter.get_total_flops()
    phases = zip(training.plan.phases, training.epochs, strict=True)
    per_image = sum(
        epochs * sum(cost[n] for step in phase.steps for n in networks_needed(training.plan, step))
        for phase, epochs in phases
    )
    return per_image * len(training.data.train.labels)


def compile_stages(ensemble: nn.Module) -> int:
    """Put a compiled stage in place of each stage of each network. -> how many

    Shapes are static: a last smaller batch is a second graph, made once, instead of slower ones for every size.
    """
    torch._functorch.config.donated_buffer = False  # gradient shares run several backward passes through one graph
    count = 0
    for network in _networks(ensemble):
        count += len(network.names)
        network.replace_stages(_compiled)
    return count


def restore_eager(ensemble: nn.Module) -> None:
    """Put the stages back as they were before `compile_stages`."""
    for network in _networks(ensemble):
        network._apply(lambda tensor: tensor)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled stages run eager for the length of the block: for a pass in a mode of its own, which is worth no graph."""
    if "torch._dynamo" not in sys.modules:  # so nothing was compiled, and importing it takes seconds
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def _compiled(stage: nn.Module) -> Any:
    return torch.compile(stage, dynamic=False)


def _networks(ensemble: nn.Module) -> list[Staged]:
    return [module for module in ensemble.modules() if isinstance(module, Staged)]


def try_compiled(ensemble: nn.Module, choice: Compile, rehearse: Callable[[], object]) -> str | None:
    """Rehearse once. -> why stages stay eager, where compiling failed; raises TrainingError for that with ``choice`` on"""
    try:
        rehearse()
    except Exception as error:  # whatever a compiler, its C++ compiler or its code generator may raise
        why = next(iter(str(error).splitlines()), type(error).__name__)
        if choice == "on":
            found = f"--compile on: {type(error).__name__}: {why}; --compile off does without"
            raise TrainingError(found, key="training.not-compiled") from error
        restore_eager(ensemble)
        return why
    return None
