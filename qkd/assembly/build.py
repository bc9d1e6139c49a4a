"""Build: the networks of a recipe, initialised, quantized and cut into stages; the mistakes of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from qkd.assembly.network_views import NetworkView
from qkd.assembly.product import scheme_of_network
from qkd.distill.plan import Shape, Tied
from qkd.distill.stages import Staged, cut
from qkd.distill.taps import LOGITS, Tap
from qkd.errors import NetworkError, Problem, QkdError, RecipeError, SchemeError, UsageError
from qkd.networks.batch_norm import replace_batch_norms
from qkd.networks.build import build
from qkd.networks.tracing import trace
from qkd.quantizers import disabled, insert
from qkd.tasks.spec import DataSpec

if TYPE_CHECKING:
    from qkd.quantizers import Scheme
    from qkd.recipe import NetworkEntry, Recipe

STUDENT = "student"
Start = Callable[[str, "NetworkEntry", nn.Module], None]  # (part, entry, network): loads weights into a float network


def keep_initial_weights(part: str, entry: NetworkEntry, network: nn.Module) -> None:
    """The start that does nothing: for checking a recipe, and where a checkpoint is loaded afterwards."""


def build_networks(recipe: Recipe, facts: DataSpec, start: Start) -> tuple[dict[str, Staged], dict[Tap, Shape]]:
    """Every network of a recipe, and the shape behind each of its stages.

    Raises RecipeError with the mistakes of all networks, checkpoints that do not fit among them; what else a start raises, at
    once and with the name of the part.
    """
    networks: dict[str, Staged] = {}
    shapes: dict[Tap, Shape] = {}
    wrong: list[Problem] = []
    for part, entry in recipe.owners.items():
        try:
            # nothing is trained for a recipe that will be refused; checkpoints are opened all the same
            begin = start if not wrong or entry.is_checkpoint else keep_initial_weights
            networks[part] = _network(part, entry, recipe, facts, begin)
            shapes |= _measured(part, networks[part], recipe, facts)
        except RecipeError as error:
            wrong += error.problems
    if wrong:
        raise RecipeError(_merged(wrong))
    views = {part: NetworkView(networks[tied.of], tied) for part, tied in tied_networks(recipe).items()}
    shapes |= {
        Tap(part, tap.stage): shapes[tap]
        for part, view in views.items()
        for tap in list(shapes)
        if tap.part == view.tied.of
    }
    return {part: views[part] if part in views else networks[part] for part in recipe.networks}, shapes


def tied_networks(recipe: Recipe) -> dict[str, Tied]:
    """The networks of a recipe that are views of others, and how they see them."""
    return {
        name: Tied(each.of, each.activations, each.share, each.average, each.dropout)
        for name, each in recipe.views.items()
    }


def _merged(wrong: Sequence[Problem]) -> list[Problem]:
    """The mistakes, those of one matched layer joined where networks differ in nothing but their name."""
    alike: dict[tuple[str, int, str, str], list[Problem]] = {}
    for problem in wrong:
        stage = problem.key.rpartition(".")[0] if problem.key.startswith("match.") else problem.key
        alike.setdefault((problem.file, problem.line, stage, problem.message), []).append(problem)
    merged = []
    for (_, _, stage, message), same in alike.items():
        parts = ", ".join(problem.key.rpartition(".")[2] for problem in same)
        one = same[0] if len(same) == 1 else same[0]._replace(key=stage, message=f"{parts}: {message}")
        merged.append(one)
    return merged


def _network(part: str, entry: NetworkEntry, recipe: Recipe, facts: DataSpec, start: Start) -> Staged:
    """One network. Raises RecipeError with every mistake in it."""
    torch.manual_seed(recipe.seed_of(part))
    try:
        built = build(entry.build, classes=facts.classes, channels=facts.shape[0], options=entry.options)
    except UsageError as error:
        raise RecipeError([recipe.problem((*recipe.key_of(part), "build"), str(error))]) from error
    network = replace_batch_norms(built)
    try:
        start(part, entry, network)
    except RecipeError:
        raise
    except NetworkError as error:
        at, _, message = str(error).partition(": ")
        if at not in ("start_from", "start_head"):
            raise
        raise RecipeError([recipe.problem((*recipe.key_of(part), at), message)]) from error
    except QkdError as error:
        raise type(error)(f"{part}: {error}", key=error.key) from error
    scheme = entry.quantize
    if scheme is not None and part == STUDENT:
        scheme = scheme_of_network(scheme, network)
    try:
        quantized = trace(network) if scheme is None else insert(network, scheme)
    except NetworkError as error:
        raise RecipeError([recipe.problem((*recipe.key_of(part), "build"), str(error))]) from error
    except SchemeError as error:
        assert scheme is not None
        raise RecipeError(_refused(part, network, scheme, recipe, str(error))) from error
    try:
        return cut(quantized, module_paths(recipe, part))
    except NetworkError as error:
        order = recipe.problem("match", f"{part}: {error}")
        raise RecipeError(_mismatched(part, quantized, recipe) or [order]) from error


def _refused(part: str, network: nn.Module, scheme: Scheme, recipe: Recipe, first: str) -> list[Problem]:
    """Why a scheme does not fit a network, override by override, and the mistakes in its match."""
    key = (*recipe.key_of(part), "quantize")
    try:
        plain = insert(network, replace(scheme, overrides={}))
    except SchemeError as error:
        return [recipe.problem_within(key, str(error))]
    found = []
    for pattern, shorthand in scheme.overrides.items():
        try:
            insert(network, replace(scheme, overrides={pattern: shorthand}))
        except SchemeError as error:
            message = str(error).removeprefix("overrides: ")
            found.append(recipe.problem((*key, "overrides", pattern), message))
    return [*(found or [recipe.problem_within(key, first)]), *_mismatched(part, plain, recipe)]


def _mismatched(part: str, network: fx.GraphModule, recipe: Recipe) -> list[Problem]:
    """Every matched path at which this network cannot be cut, tried one by one. Mutates ``network``: do not use it again."""
    found = []
    for at, (stage, path) in enumerate(module_paths(recipe, part).items()):
        try:
            cut(network, {stage: path})
        except NetworkError as error:
            written = ("match", stage, part)
            listed = ("match", str(at))  # an entry of a list is for every network
            problem = recipe.problem(written if written in recipe.origin.positions else listed, str(error))
            found.append(problem._replace(key=".".join(written)))
    return found


def module_paths(recipe: Recipe, part: str) -> dict[str, str]:
    """Stage -> module path of one part."""
    return {stage: paths[part] for stage, paths in recipe.match.items()}


def _measured(part: str, network: Staged, recipe: Recipe, facts: DataSpec) -> dict[Tap, Shape]:
    try:
        return measure_shapes({part: network}, facts)
    except NetworkError as error:
        message = str(error).removeprefix(f"{part}: ")
        raise RecipeError([recipe.problem((*recipe.key_of(part), "build"), message)]) from error


@torch.no_grad()
def measure_shapes(networks: Mapping[str, Staged], facts: DataSpec) -> dict[Tap, Shape]:
    """The shape behind every stage of every network, without the batch axis: a forward pass on a batch of two zero tensors.

    Raises NetworkError where a network fails on it, or gives anything but logits.
    """
    shapes: dict[Tap, Shape] = {}
    for part, network in networks.items():
        network.eval()
        flow: tuple = (torch.zeros(2, *facts.shape),)
        with disabled(network):
            for stage in network.names:
                try:
                    flow = network.advance(stage, flow)
                except Exception as error:  # layers of the user's own may raise anything
                    size, kind = "x".join(map(str, facts.shape)), type(error).__name__
                    first = next(iter(str(error).splitlines()), "")
                    why = first if isinstance(error, RuntimeError) and first else f"{kind}: {first}"
                    raise NetworkError(
                        f"{part}: fails on images of {size} before {stage}: {why}; choose another data size or network",
                        key="network.fails-on-images",
                    ) from error
                if stage == LOGITS:
                    _require_logits(part, network, flow)
                if not isinstance(flow[0], Tensor):
                    raise NetworkError(
                        f"{part}: {stage} gives {type(flow[0]).__name__}, not one tensor; cut elsewhere",
                        key="match.not-a-tensor",
                    )
                shapes[Tap(part, stage)] = tuple(flow[0].shape[1:])
        if shapes[Tap(part)] != (facts.classes,):
            found = "x".join(map(str, shapes[Tap(part)]))
            raise NetworkError(
                f"{part}: its output has shape (batch, {found}); the data needs (batch, {facts.classes})",
                key="network.other-classes",
            )
    return shapes


def _require_logits(part: str, network: Staged, flow: tuple) -> None:
    """Raises NetworkError for a network that returns anything but one tensor."""
    alone = len(flow) == 1 and isinstance(network.result, fx.Node)
    made = flow[0] if len(flow) == 1 and (alone or not isinstance(flow[0], Tensor)) else flow
    if not isinstance(made, Tensor):
        count = f" of {len(made)}" if isinstance(made, tuple | list) else ""
        raise NetworkError(
            f"{part}: its output is a {type(made).__name__}{count}; a network returns one tensor of logits, (batch, classes): "
            f"return that alone, if need be from a class around it",
            key="network.output-not-a-tensor",
        )
