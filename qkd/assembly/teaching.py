"""What is known of a collaboration before training: which terms reach a network, and which networks begin as copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qkd.assembly.assemble import Assembly
from qkd.distill.plan import Step, networks_needed
from qkd.distill.terms import Term
from qkd.quantizers import disabled
from qkd.tasks.batch import Batch

if TYPE_CHECKING:
    pass


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
