"""What is known of a collaboration before training: which terms reach a network, and which networks begin as copies."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from qkd.assembly.assemble import Assembly
from qkd.distill.plan import Step, networks_needed
from qkd.distill.terms import Term
from qkd.quantizers import disabled, scales
from qkd.tasks.batch import Batch

if TYPE_CHECKING:
    from qkd.recipe import Recipe


def reaching_terms(assembly: Assembly, step: Step) -> dict[str, list[Term]]:
    """The terms of a step that send a gradient to each network that learns in it, at any time of the phase.

    Found by computing the step once on two random images with rounding off; nothing in the ensemble changes.
    """
    ensemble, plan = assembly.ensemble, assembly.plan
    state = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}
    ensemble.set_learners(step.learners)
    images = torch.randn(2, *assembly.facts.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(2) % assembly.facts.classes, torch.arange(2))
    with torch.random.fork_rng(devices=[]), disabled(ensemble):
        outputs = ensemble(batch.images, sorted(networks_needed(plan, step)), 0.0)
        losses = [(term, term(outputs, batch)) for term in step.terms if term.weight != 0]
    found: dict[str, list[Term]] = {}
    for part in (name for name in ensemble.networks if name in step.parts):
        parameters = [p for p in ensemble.part(part).parameters() if p.requires_grad]
        for term, loss in losses:
            graph = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.grad_fn else ()
            if any(gradient is not None for gradient in graph):
                found.setdefault(part, []).append(term)
    ensemble.load_state_dict(state)
    return found


def equal_beginnings(recipe: Recipe, assembly: Assembly) -> list[tuple[str, ...]]:
    """Groups of networks that begin with the same weights: one architecture, one start, and the same random weights first.

    Of networks that begin from a checkpoint the random weights do not count. Float starts are trained from them, with the
    same images in the same order.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for part, entry in recipe.networks.items():
        drawn = _weights_hash(assembly.ensemble.part(part)) if entry.start_from in ("float", "scratch") else ""
        key = (str(entry.build), repr(entry.options), str(entry.start_from), drawn)
        groups.setdefault(key, []).append(part)
    return [tuple(parts) for parts in groups.values() if len(parts) > 1]


def _weights_hash(network: nn.Module) -> str:
    """Of all weights of two or more dimensions but those of quantizers, whatever their names."""
    own = {id(scale) for scale in scales(network)}
    weights = (p for p in network.parameters() if p.dim() > 1 and id(p) not in own)
    each = sorted(hashlib.sha256(weight.detach().contiguous().numpy().tobytes()).hexdigest() for weight in weights)
    return hashlib.sha256("".join(each).encode()).hexdigest()
