"""SPEQ: the loss written out a second time in float64, and what of the paper the recipe says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qkd import recipe as recipes
from qkd.assembly.assemble import assemble
from qkd.distill.losses import cosine_divergence
from qkd.distill.plan import networks_needed
from qkd.distill.terms import weighted_sum
from qkd.quantizers import calibrate
from tests.support.ensembles import FACTS, FAKE, batch, ce, learners_of, names_of, near


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The mean over samples, by numpy."""
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (one, other))
    cosines = (p * q).sum(1) / np.sqrt((p**2).sum(1) * (q**2).sum(1))
    return float(np.mean(1 - cosines))


def test_the_cosine_divergence_is_its_formula() -> None:
    one, other = torch.randn(7, 5), 3 * torch.randn(7, 5)
    assert cosine_divergence(one, other) == near(cosine(one.double().numpy(), other.double().numpy()))
    assert cosine_divergence(one, one).abs() < 1e-6
    far = torch.tensor([[40.0, -40.0]])
    assert cosine_divergence(far, -far) == near(1.0)


def test_speq_is_its_equation() -> None:
    recipe = recipes.load("digits_speq_w2a2", [FAKE, "student.width=4", "method.weight=0.7"])
    assembly = assemble(recipe, FACTS)
    ensemble, plan = assembly.ensemble, assembly.plan
    calibrate(ensemble.networks["student"].network, [batch().images])
    [step] = plan.phases[0].steps
    assert learners_of(plan) == {"student"}
    assert names_of(step) == {"label/student", "imitate/student<finer"}
    ensemble.set_learners(step.learners)
    outputs = ensemble(batch().images, sorted(networks_needed(plan, step)))
    loss = weighted_sum({term.name: term(outputs, batch()) for term in step.terms}, step.terms, 0.0)
    own, finer = ({tap.part: z.detach().double() for tap, z in outputs.items()}[part] for part in ("student", "finer"))
    assert not torch.equal(own, finer)
    assert loss.item() == near(ce(own) + 0.7 * cosine(own.numpy(), finer.numpy()))


@pytest.mark.parametrize("name", ["digits_speq_w2a2", "cifar10_speq_w2a2"])
def test_the_recipes_have_the_papers_bits_and_probability(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name, paths_exist=False)
    (view,) = recipe.views.values()
    assert (view.of, view.activations, view.share, view.average) == ("student", 8, 0.5, None)
    assert recipe.student.quantize is not None
    assert (recipe.student.quantize.weights, recipe.student.quantize.activations) == (2, 2)
