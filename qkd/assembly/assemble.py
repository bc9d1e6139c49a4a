"""Assemble: a recipe becomes networks, quantized and cut into stages, and a plan, checked before the first batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from qkd.assembly.build import STUDENT, Start, build_networks, keep_initial_weights, tied_networks
from qkd.assembly.dampening import dampened
from qkd.assembly.ensemble import Ensemble
from qkd.assembly.network_views import check_network_views
from qkd.assembly.product import quantized_heads, scheme_of_heads
from qkd.assembly.rehearsal import rehearse
from qkd.distill.plan import Plan, Setup
from qkd.distill.stages import Staged
from qkd.errors import PlanError, QkdError, SchemeError, nearest
from qkd.methods import METHODS
from qkd.networks.batch_norm import copied_module
from qkd.options import is_user_code, look_up
from qkd.tasks.spec import DataSpec

if TYPE_CHECKING:
    from qkd.recipe import Recipe


@dataclass(frozen=True)
class Assembly:
    """The networks and the plan of a recipe, ready to train or to load weights into. ``facts``: of the data."""

    ensemble: Ensemble
    plan: Plan
    setup: Setup
    facts: DataSpec

    def product(self) -> nn.Module:
        """What is deployed: images (B, C, H, W) -> logits (B, classes)."""
        return self.ensemble.product(self.plan)


def assemble(
    recipe: Recipe, facts: DataSpec, *, start: Start = keep_initial_weights, begun: Ensemble | None = None
) -> Assembly:
    """Build, initialise, quantize and cut every network, measure shapes, ask the method for its plan, and check it.

    ``begun``: an ensemble of the same recipe in float, whose weights the heads and the exchange begin with.

    Raises RecipeError with the mistakes of all networks; PlanError and SchemeError name file, line and key too.
    """
    networks, shapes = build_networks(recipe, facts, start)
    stages = tuple(name for name in networks[STUDENT].names if name != "logits")
    starts, tied = {part: entry.start_from for part, entry in recipe.owners.items()}, tied_networks(recipe)
    setup = Setup(STUDENT, tuple(recipe.teachers), stages, facts.classes, shapes, starts, tied)
    torch.manual_seed(recipe.seed)
    with _located(recipe):
        plan = _plan(recipe, setup)
        plan = plan if begun is None else _begun_as(plan, begun)
        plan = dampened(plan, networks, recipe.train.dampen)
        check_network_views(plan, tied)
        _check_borrowed(plan, networks)
        scheme, heads = recipe.student.quantize, None
        if scheme is not None:
            heads = quantized_heads(plan, networks, scheme_of_heads(scheme, networks[STUDENT].network))
        ensemble = Ensemble(networks, plan, heads)
        rehearse(ensemble, plan, shapes, facts, mixed=bool(recipe.train.mixup or recipe.train.cutmix))
    return Assembly(ensemble, plan, setup, facts)


@contextlib.contextmanager
def _located(recipe: Recipe) -> Iterator[None]:
    """Errors of a plan and of heads get file, line and key of the recipe; so does whatever a user's own method raises."""
    try:
        yield
    except PlanError as error:
        raise PlanError(str(recipe.problem_within((), str(error), other="method")), key=error.key) from error
    except SchemeError as error:
        raise SchemeError(str(recipe.problem_within((STUDENT, "quantize"), str(error))), key=error.key) from error
    except QkdError:
        raise
    except Exception as error:
        if not is_user_code(recipe.method.name):
            raise
        message = f"{recipe.method.name}: {type(error).__name__}: {error}"
        raise PlanError(str(recipe.problem("method", message)), key="plan.method-failed") from error


def _plan(recipe: Recipe, setup: Setup) -> Plan:
    method = look_up(recipe.method.name, METHODS, what="method", error=PlanError)
    plan = method(setup, **recipe.method.options)
    if not isinstance(plan, Plan):
        raise PlanError(
            f"{recipe.method.name}: gave {type(plan).__name__}, not a qkd.distill.plan.Plan", key="plan.not-a-plan"
        )
    return plan


def _begun_as(plan: Plan, begun: Ensemble) -> Plan:
    """The plan with heads and an exchange that begin with the weights of those of an ensemble."""
    heads = [copied_module(head) for head in plan.heads]
    for head in heads:
        head.load_state_dict(begun.heads[head.name].state_dict())
    exchange = copied_module(plan.exchange)
    exchange.load_state_dict(begun.exchange.state_dict())
    return replace(plan, heads=tuple(heads), exchange=exchange)


def _check_borrowed(plan: Plan, networks: Mapping[str, Staged]) -> None:
    """Raises PlanError where a head borrows a stage that is not there or cannot run by itself."""
    for via in (head.via for head in plan.heads if head.via is not None):
        if via.part not in networks:
            raise PlanError(
                f"no network {via.part!r} to borrow from{nearest(via.part, networks)}", key="plan.borrows-no-network"
            )
        stages = networks[via.part].names
        if via.stage not in stages:
            raise PlanError(
                f"{via.part} has no stage {via.stage!r} to borrow; there are {', '.join(stages)}",
                key="plan.borrows-no-stage",
            )
        if networks[via.part].inputs(via.stage) != 1:
            raise PlanError(
                f"match: {via} cannot be borrowed: it reads more than the tensor before it; cut {via.part} where a "
                f"single tensor is alive, for example behind a block",
                key="match.not-borrowable",
            )
