"""Gradient shares: how much of each learner's gradient comes from each term."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qkd.assembly.ensemble import Ensemble
from qkd.distill.plan import Step
from qkd.distill.taps import Outputs
from qkd.distill.terms import Term

if TYPE_CHECKING:
    from qkd.tasks.batch import Batch


def gradient_shares(
    ensemble: Ensemble, forward: Callable[[], Outputs], step: Step, batch: Batch, progress: float, scale: float = 1.0
) -> dict[str, float]:
    """Norms of each term's weighted gradient per learner, as shares of their sum: ``gradient/<learner>/<term>``.

    Batch-norm statistics and random states are as before afterwards. ``forward`` runs the ensemble on the batch as in
    training; ``scale`` keeps gradients in fp16 from vanishing. To be called on every rank; each sees its own images.
    """
    ensemble.set_learners(step.learners)
    buffers = {name: buffer.clone() for name, buffer in ensemble.named_buffers()}
    devices = [batch.images.device] if batch.images.device.type == "cuda" else []
    shares: dict[str, float] = {}
    try:
        with torch.random.fork_rng(devices=devices):
            outputs = forward()
            for learner in sorted(step.learners):
                parameters = [p for m in ensemble.modules_of(learner) for p in m.parameters() if p.requires_grad]
                norms = {term.name: _norm(term, outputs, batch, parameters, progress, scale) for term in step.terms}
                total = sum(norms.values()) or 1.0
                shares |= {f"gradient/{learner}/{name}": round(norm / total, 4) for name, norm in norms.items() if norm}
    finally:  # where compiling fails, training continues without it
        for name, buffer in ensemble.named_buffers():
            buffer.copy_(buffers[name])
    return shares


def _norm(
    term: Term, outputs: Any, batch: Batch, parameters: list[nn.Parameter], progress: float, scale: float
) -> float:
    loss = term(outputs, batch) * (term.weight_at(progress) * scale)
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return float(sum(g.detach().float().square().sum() for g in gradients if g is not None)) ** 0.5
