"""Gradient shares: how much of each learner's gradient comes from each term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
            owned = {
                str(learner): [p for m in ensemble.modules_of(learner) for p in m.parameters() if p.requires_grad]
                for learner in sorted(step.learners)
            }
            norms = {term.name: _norms(term, outputs, batch, owned, progress, scale) for term in step.terms}
            for learner in owned:
                own = {name: found[learner] for name, found in norms.items()}
                total = sum(own.values()) or 1.0
                shares |= {f"gradient/{learner}/{name}": round(norm / total, 4) for name, norm in own.items() if norm}
    finally:  # where compiling fails, training continues without it
        for name, buffer in ensemble.named_buffers():
            buffer.copy_(buffers[name])
    return shares


def _norms(
    term: Term, outputs: Any, batch: Batch, owned: Mapping[str, list[nn.Parameter]], progress: float, scale: float
) -> dict[str, float]:
    """The norm of a term's weighted gradient for each learner, from one backward pass for all of them."""
    loss = term(outputs, batch) * (term.weight_at(progress) * scale)
    if not loss.requires_grad:
        return dict.fromkeys(owned, 0.0)
    every = list({id(p): p for parameters in owned.values() for p in parameters}.values())
    gradients = torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True)
    squares = {
        id(p): 0.0 if g is None else g.detach().float().square().sum() for p, g in zip(every, gradients, strict=True)
    }
    return {learner: float(sum(squares[id(p)] for p in parameters)) ** 0.5 for learner, parameters in owned.items()}
