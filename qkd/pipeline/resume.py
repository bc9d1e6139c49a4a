"""Resume: which run, whether it can be resumed, and what differs from when it was started."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkd import recipe as recipes
from qkd.errors import RunError
from qkd.recipe.models import SAME, STUDENT
from qkd.storage.artifacts import CHECKPOINTS, ENVIRONMENT, ORIGINAL_RECIPE, RECIPE
from qkd.storage.checkpoints import LAST
from qkd.storage.run import Run

if TYPE_CHECKING:
    from qkd.recipe import Recipe


CHANGES_BITS = ("device", "precision", "compile", "threads", "ranks", "torch")  # facts of the environment


def refuse_changed(run: Run, recipe: Recipe) -> None:
    """Raise RunError naming every key in which the recipe differs from the run's; a ``seed: null`` is any (`keep_seeds`)."""
    seeds, old = recorded_seeds(run), recipes.load(run.folder / RECIPE, paths_exist=False)
    before, now = (keep_seeds(each, seeds).model_dump(mode="json") for each in (old, recipe))
    order = [list(one["teachers"]) for one in (before, now)]  # of a chain the order is the method
    moved = sorted(order[0]) == sorted(order[1]) and order[0] != order[1]
    changed = [f"teachers stood in the order {', '.join(order[0])}, now {', '.join(order[1])}"] if moved else []
    changed += [f"{key} was {json.dumps(a)}, is {json.dumps(b)}" for key, a, b in _differences(before, now)]
    if changed:
        raise RunError(
            f"{run.folder}: the recipe changed since: {'; '.join(changed)}; start a new run instead of --resume",
            key="run.recipe-changed",
        )


def keep_seeds(recipe: Recipe, recorded: Mapping[str, int | str | None]) -> Recipe:
    """The recipe with the recorded ``seed:`` of every network for which it gives none.

    A run that goes on has its weights, so that it stays what it was where the default changes.
    """

    unsaid = {part: entry for part, entry in recipe.owners.items() if entry.seed is None}
    kept = {part: entry.model_copy(update={"seed": recorded.get(part)}) for part, entry in unsaid.items()}
    networks = {**recipe.networks, **kept}
    return recipe.model_copy(update={"student": networks.pop(STUDENT), "teachers": networks})


def recorded_seeds(run: Run) -> dict[str, int | str | None]:
    """The ``seed:`` of every network of a run; ``same`` where its recipe is from before there was such a key. -> by name"""
    recipe = recipes.load(run.folder / RECIPE, paths_exist=False)
    stated = {part: (*recipe.key_of(part), "seed") in recipe.origin.positions for part in recipe.owners}
    return {part: entry.seed if stated[part] else SAME for part, entry in recipe.owners.items()}


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*before, *now]))
        return [d for n in names for d in _differences(before.get(n), now.get(n), f"{key}.{n}" if key else n)]
    return [] if before == now else [(key, before, now)]


def is_complete(run: Run) -> bool:
    """Whether a run is finished. One whose result is damaged is not, with a warning: it is made again.

    Raises RunError where no checkpoint is left for that.
    """
    try:
        return run.finished
    except RunError as error:
        if not run.checkpoints.files(LAST):
            advice = f"there is no checkpoint to make it again from; `qkd eval {run.folder}` measures the product"
            raise RunError(f"{error}; {advice}", key="run.no-checkpoint") from error
        logging.getLogger("qkd").warning("%s; it is made again from the last checkpoint", error)
        return False


def changed_environment(run: Run, now: Mapping[str, Any]) -> list[str]:
    """What differs from the environment in which a run was last trained, of the facts that change its numbers."""
    try:
        before = run.read_json(ENVIRONMENT)
    except RunError:
        return []
    changed = [name for name in CHANGES_BITS if name in before and before[name] != now.get(name)]
    return [f"{name} was {before[name]}, is {now.get(name)}" for name in changed]


def resumable_run(folder: Path) -> Run:
    """A run to resume. One that was killed before it had written anything is resumed from its start.

    Raises RunError for a folder that is not a run.
    """
    if folder.is_dir() and all(_precedes_recipe(path) for path in folder.iterdir()):
        return Run(folder)
    return Run.open(folder)


def _precedes_recipe(path: Path) -> bool:
    """Whether a run writes it before its recipe."""
    empty = path.is_dir() and path.name == CHECKPOINTS and not any(path.iterdir())
    return empty or path.name.startswith(".") or path.name == ORIGINAL_RECIPE


def latest_run(root: Path, name: str) -> Run:
    """The newest run of a recipe's name. Raises RunError if there is none."""
    found = [p for p in root.glob(f"{name}*") if p.name == name or p.name.removeprefix(f"{name}-").isdigit()]
    found = [p for p in found if p.is_dir()]
    if not found:
        raise RunError(f"{root / name}: nothing to resume: there is no run of this name", key="run.nothing-to-resume")
    return resumable_run(max(found, key=_last_written))


def _last_written(folder: Path) -> tuple[float, int]:
    """(time of the last write, number of the run): of equal times the later number is newer."""
    times = [p.stat().st_mtime for p in (folder, folder / CHECKPOINTS, folder / RECIPE) if p.exists()]
    number = folder.name.rpartition("-")[2]
    return max(times), int(number) if number.isdigit() else 1
