"""Gradient shares: how much of each learner's gradient comes from each term, and how large the gradient of each part is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkd.assembly.ensemble import Ensemble
from qkd.distill.plan import Learner, Step
from qkd.distill.taps import Outputs
from qkd.distill.terms import Term

if TYPE_CHECKING:
    from qkd.tasks.batch import Batch

Gradients = dict[int, Tensor]  # by the id of the parameter


def gradient_shares(
    ensemble: Ensemble, forward: Callable[[], Outputs], step: Step, batch: Batch, progress: float, scale: float = 1.0
) -> dict[str, float]:
    """Shares of the terms in the gradients of learners, and the norms of these gradients, by the name of their metric.

    ``gradient/<learner>/<term>``: the norm of a weighted term's gradient, as a share of the sum of these norms.
    ``gradient_norm/<part>``: the norm of the gradient of all terms together, before clipping, over all that learns of a part.

    Batch-norm statistics and random states are as before afterwards. ``forward`` runs the ensemble on the batch as in
    training; ``scale`` keeps gradients in fp16 from vanishing. To be called on every rank; each sees its own images.
    """
    ensemble.set_learners(step.learners)
    buffers = {name: buffer.clone() for name, buffer in ensemble.named_buffers()}
    devices = [batch.images.device] if batch.images.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            return _shares_and_norms(ensemble, forward(), step, batch, progress, scale)
    finally:  # where compiling fails, training continues without it
        for name, buffer in ensemble.named_buffers():
            buffer.copy_(buffers[name])


def _shares_and_norms(
    ensemble: Ensemble, outputs: Outputs, step: Step, batch: Batch, progress: float, scale: float
) -> dict[str, float]:
    owned = {learner: _parameters(ensemble, learner) for learner in sorted(step.learners)}
    everything = list({id(p): p for parameters in owned.values() for p in parameters}.values())
    norms: dict[Learner, dict[str, float]] = {learner: {} for learner in owned}
    whole: Gradients = {}
    for term in step.terms:  # one backward pass each, for all learners
        found = _gradients(term, outputs, batch, everything, progress, scale)
        for learner, parameters in owned.items():
            norms[learner][term.name] = _norm(found, map(id, parameters))
        whole |= {key: whole[key] + gradient if key in whole else gradient for key, gradient in found.items()}
    return {**_shares(norms), **_norms(owned, whole, scale)}


def _parameters(ensemble: Ensemble, learner: Learner) -> list[nn.Parameter]:
    return [p for module in ensemble.modules_of(learner) for p in module.parameters() if p.requires_grad]


def _shares(norms: Mapping[Learner, Mapping[str, float]]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for learner, found in norms.items():
        total = sum(found.values()) or 1.0
        shares |= {f"gradient/{learner}/{name}": round(norm / total, 4) for name, norm in found.items() if norm}
    return shares


def _norms(owned: Mapping[Learner, Sequence[nn.Parameter]], whole: Gradients, scale: float) -> dict[str, float]:
    parts: dict[str, dict[int, None]] = {}  # pieces of a part may overlap
    for learner, parameters in owned.items():
        parts.setdefault(learner.part, {}).update(dict.fromkeys(map(id, parameters)))
    return {f"gradient_norm/{part}": float(f"{_norm(whole, keys) / scale:.6g}") for part, keys in parts.items()}


def _gradients(
    term: Term, outputs: Any, batch: Batch, parameters: list[nn.Parameter], progress: float, scale: float
) -> Gradients:
    """The gradient of a weighted term, times ``scale``, at the parameters that it reaches."""
    loss = term(outputs, batch) * (term.weight_at(progress) * scale)
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {id(p): g.detach().float() for p, g in zip(parameters, found, strict=True) if g is not None}


def _norm(gradients: Gradients, keys: Iterable[int]) -> float:
    return float(sum(gradients[key].square().sum() for key in keys if key in gradients)) ** 0.5
