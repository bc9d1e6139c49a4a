"""Guard: when a loss or a gradient is not finite, which layer was the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkd.engine.compile import restore_eager
from qkd.quantizers import diagnose

if TYPE_CHECKING:
    from qkd.assembly.ensemble import Ensemble
    from qkd.engine.train import Training

LOOK_AT = 64  # images that quantizers are looked at with


def first_non_finite_layer(parts: Ensemble, compute: Callable[[], Tensor]) -> str:
    """The layer where numbers ceased to be finite, in words, found by computing the total loss again under observation.

    Looked for in this order: parameters; outputs, in the order of computation; gradients, from the loss backwards. What a
    step leaves in the parts (statistics of batch norm, gradients) changes: call it only to give up afterwards.
    """
    restore_eager(parts)  # what is compiled calls no hooks
    for name, tensor in [*parts.named_parameters(), *parts.named_buffers()]:
        if not is_finite(tensor):
            return f"{_short(name)} is not finite before this step"
    found: list[str] = []
    handles = [module.register_forward_hook(_watch(_short(name), found)) for name, module in _leaves(parts)]
    try:
        total = compute()
        if not found and is_finite(total) and total.requires_grad:
            parts.zero_grad()
            total.backward()
    finally:
        for handle in handles:
            handle.remove()
    broken = (
        f"the gradient of {_short(n)}"
        for n, p in parts.named_parameters()
        if p.grad is not None and not is_finite(p.grad)
    )
    return next(iter(found), None) or next(
        (f"{what} is not finite" for what in broken), "every layer's output is finite"
    )


def non_finite_parameter(parts: nn.Module) -> str:
    """The first parameter that is not finite; empty where all are."""
    return next((_short(name) for name, parameter in parts.named_parameters() if not is_finite(parameter)), "")


def _leaves(parts: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that compute something: layers with their quantizers as one, quantizers between layers."""
    for name, module in parts.named_modules():
        if getattr(module, "is_leaf", False) or not any(True for _ in module.children()):
            yield name, module


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if not isinstance(tensor, Tensor):
                continue
            if not is_finite(tensor):
                found.append(f"the output of {name} ({type(module).__name__}) is not finite")
            elif tensor.requires_grad:
                tensor.register_hook(listen)

    def listen(gradient: Tensor) -> None:
        if not is_finite(gradient):
            found.append(f"the gradient behind {name} is not finite")

    return look


def is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _short(name: str) -> str:
    """``student.layer1.conv2.weight`` for what lies at ``networks.student.network.layer1.conv2.weight``."""
    words = [word for word in name.split(".") if not word.startswith("_")]
    if words[:1] == ["networks"]:
        words = [words[1], *words[3:]] if words[2:3] == ["network"] else words[1:]
    return ".".join(words)


def diagnose_learners(training: Training) -> list[str]:
    """One line for each quantizer of a learner that is dead, saturated or not finite on a few images, under its part's name."""
    learners = {learner.partition(".")[0] for learner in training.plan.learners}
    batches = (
        batch
        for split in ("val", "train")
        for batch in training.data.batches(split, training.batch, device=training.device)
    )
    images = next(batches).images[:LOOK_AT]
    networks = training.parts.networks.items()
    return [
        f"{name}.{line}" for name, staged in networks if name in learners for line in diagnose(staged.network, [images])
    ]
