"""Diagnostics: the first layer whose numbers are not finite, and quantizers that are broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkd.engine.compile import restore_eager
from qkd.quantizers import diagnose

if TYPE_CHECKING:
    from qkd.assembly.ensemble import Ensemble
    from qkd.engine.training_context import Training

IMAGES = 64  # for diagnosing quantizers


def first_non_finite_layer(ensemble: Ensemble, compute: Callable[[], Tensor]) -> str:
    """A sentence naming the first layer with numbers that are not finite; ``compute`` gives the total loss again.

    Looked for in this order: parameters; outputs, in the order of computation; gradients, from the loss backwards. Batch-norm
    statistics and gradients change: call it only to give up afterwards.
    """
    restore_eager(ensemble)  # compiled stages call no hooks
    for name, tensor in [*ensemble.named_parameters(), *ensemble.named_buffers()]:
        if not is_finite(tensor):
            return f"{_short(name)} is not finite before this step"
    found: list[str] = []
    handles = [module.register_forward_hook(_watch(_short(name), found)) for name, module in _leaves(ensemble)]
    try:
        total = compute()
        if not found and is_finite(total) and total.requires_grad:
            ensemble.zero_grad()
            total.backward()
    finally:
        for handle in handles:
            handle.remove()
    broken = (
        f"the gradient of {_short(n)}"
        for n, p in ensemble.named_parameters()
        if p.grad is not None and not is_finite(p.grad)
    )
    return next(iter(found), None) or next(
        (f"{what} is not finite" for what in broken), "every layer's output is finite"
    )


def non_finite_parameter(module: nn.Module) -> str:
    """The first parameter that is not finite; empty where all are."""
    return next((_short(name) for name, parameter in module.named_parameters() if not is_finite(parameter)), "")


def _leaves(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that compute something: layers together with their quantizers, and quantizers between layers."""
    for name, module in root.named_modules():
        if getattr(module, "is_leaf", False) or not any(True for _ in module.children()):
            yield name, module


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if not isinstance(tensor, Tensor):
                continue
            if not is_finite(tensor):
                found.append(f"the output of {name} ({type(module).__name__}) is not finite")
            elif tensor.requires_grad:
                tensor.register_hook(check_gradient)

    def check_gradient(gradient: Tensor) -> None:
        if not is_finite(gradient):
            found.append(f"the gradient behind {name} is not finite")

    return check_output


def is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _short(name: str) -> str:
    """``student.layer1.conv2.weight`` for what lies at ``networks.student.network.layer1.conv2.weight``."""
    words = [word for word in name.split(".") if not word.startswith("_")]
    if words[:1] == ["networks"]:
        words = [words[1], *words[3:]] if words[2:3] == ["network"] else words[1:]
    return ".".join(words)


def diagnose_learners(training: Training) -> list[str]:
    """One line for each quantizer of a network that learns and is dead, saturated or not finite on a few images."""
    learning = {learner.part for learner in training.plan.learners}
    batches = (
        batch
        for split in ("val", "train")
        for batch in training.data.batches(split, training.batch, device=training.device)
    )
    images = next(batches).images[:IMAGES]
    networks = training.ensemble.networks.items()
    return [
        f"{name}.{line}" for name, staged in networks if name in learning for line in diagnose(staged.network, [images])
    ]
