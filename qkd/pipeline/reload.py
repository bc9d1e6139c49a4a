"""Reload: the trained product and the float start of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from qkd import recipe as recipes
from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.build import STUDENT
from qkd.errors import RunError
from qkd.storage.artifacts import DATA, FLOAT_START, RECIPE
from qkd.storage.run import Run
from qkd.tasks.spec import DataSpec

if TYPE_CHECKING:
    from qkd.recipe import Recipe


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its product with the trained weights, on the CPU, in evaluation mode."""

    run: Run
    recipe: Recipe
    facts: DataSpec
    data: Mapping[str, Any]
    product: nn.Module
    assembly: Assembly


def reload_product(run: Run) -> FinishedRun:
    """The product of a run. Raises RunError where the run is not finished or its product does not fit its recipe."""
    recipe = recipes.load(run.folder / RECIPE, paths_exist=False)
    state, data = run.load_product(), run.read_json(DATA)
    facts = DataSpec(tuple(data["shape"]), len(data["labels"]))
    assembly = assemble(recipe, facts)
    product = assembly.product()
    try:
        product.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"{run.folder}: the product does not fit the recipe: {str(error).splitlines()[-1].strip()}",
            key="run.product-does-not-fit",
        ) from error
    return FinishedRun(run, recipe, facts, data, product.eval(), assembly)


def float_network(finished: FinishedRun) -> nn.Module | None:
    """The float network that the student started from; None where there was none, or where the product is a head."""
    from safetensors.torch import load_file

    from qkd.networks.build import build
    from qkd.networks.start_weights import load_state

    path = finished.run.folder / FLOAT_START
    if not path.is_file() or finished.assembly.plan.product != STUDENT:
        return None
    entry = finished.recipe.student
    network = build(
        entry.build, classes=finished.facts.classes, channels=finished.facts.shape[0], options=entry.options
    )
    load_state(network, load_file(path))
    return network.eval()
