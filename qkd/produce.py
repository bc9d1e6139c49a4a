"""Produce: a recipe goes in, a trained product in a run folder comes out; and a finished run comes back as its product."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qkd import recipe as recipes
from qkd.assemble import STUDENT, Assembly, Facts, assemble
from qkd.data import DATASETS, Data
from qkd.errors import RunError
from qkd.evaluate import logits, top1, top1_of_parts
from qkd.quantizers import calibrate
from qkd.run import DATA, ENVIRONMENT, LAST, RECIPE, RESULT, Run, environment
from qkd.starts import Starts
from qkd.train import Listener, Training, settle, train

if TYPE_CHECKING:
    from qkd.recipe import Recipe

FLOAT = "float.safetensors"
BEFORE = "before"  # the line of metrics that holds what calibration alone gives
CALIBRATION_IMAGES = 1024


@dataclass(frozen=True)
class Machine:
    """Where and how to compute."""

    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None

    def fabric(self) -> Any:
        import lightning_fabric

        if self.threads:
            torch.set_num_threads(self.threads)
        accelerator, _, index = self.device.partition(":")
        names = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
        devices: Any = [int(index)] if index else 1
        return lightning_fabric.Fabric(accelerator=accelerator, devices=devices, precision=names[self.precision])  # type: ignore[arg-type]


def load_data(recipe: Recipe) -> Data:
    """The data set of a recipe. Raises DataError."""
    return DATASETS[recipe.data.name](**recipe.data.options)


def facts_of(data: Data) -> Facts:
    return Facts(data.shape, data.classes)


def produce(
    recipe: Recipe,
    run: Run,
    machine: Machine,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    listen: Listener = lambda event, values: None,
) -> dict[str, Any]:
    """Train the recipe's product in a run folder. -> what `qkd train --json` prints."""
    start = time.perf_counter()
    fabric = machine.fabric()
    data = load_data(recipe)
    _write_facts(run, recipe, data)
    starts = Starts(recipe, data, fabric, listen=listen)
    kept: dict[str, Mapping[str, Any]] = {}

    def begin(part: str, entry: Any, network: nn.Module) -> None:
        starts(part, entry, network)
        if part == STUDENT and part in starts.top1:
            kept[part] = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    assembly = assemble(recipe, facts_of(data), start=begin)
    _keep_float(run, kept.get(STUDENT))
    training = _training(recipe, assembly, data, fabric, run, max_steps, listen)
    before = _before(run) if resume else _prepare(training, assembly, data)
    cursor = train(training, resume=resume)
    result = _finish(training, assembly, data)
    return _report(run, recipe, starts, cursor, {"before_top1": before, **result}, time.perf_counter() - start)


def _training(
    recipe: Recipe, assembly: Assembly, data: Data, fabric: Any, run: Run, max_steps: int | None, listen: Listener
) -> Training:
    scheme = recipe.student.quantize
    low = scheme is not None and min(scheme.weights, scheme.activations) <= 4
    return Training(
        parts=assembly.parts.to(fabric.device).to(memory_format=torch.channels_last),
        plan=assembly.plan,
        data=data,
        settings=recipe.train,
        batch=recipe.data.batch,
        seed=recipe.seed,
        fabric=fabric,
        run=run,
        reestimate=low if recipe.train.reestimate == "auto" else bool(recipe.train.reestimate),
        max_steps=max_steps,
        listen=listen,
    )


def _prepare(training: Training, assembly: Assembly, data: Data) -> float:
    """Calibrate everybody on training images. -> top-1 of the product before training, on the test split."""
    torch.manual_seed(training.seed)
    count = max(1, CALIBRATION_IMAGES // training.batch)
    seen = data.batches("train", training.batch, shuffle_seed=training.seed, device=training.device)
    images = [batch.images for _, batch in zip(range(count), seen, strict=False)]
    for staged in training.parts.networks.values():
        calibrate(staged.network, images)
    head = assembly.plan.head(assembly.plan.product)
    if head is not None:
        calibrate(assembly.product(), images)
    if training.reestimate:
        settle(training)
    before = test_top1(assembly.product(), data, training.batch, training.device)
    assert training.run is not None
    training.run.log({"phase": BEFORE, "steps": 0, "test/top1": before})
    training.listen(BEFORE, {"top1": before})
    return before


def _before(run: Run) -> float | None:
    return next((line["test/top1"] for line in run.metrics() if line.get("phase") == BEFORE), None)


def test_top1(product: nn.Module, data: Data, batch: int, device: torch.device | str) -> float:
    return top1(logits(product, data.batches("test", batch, device=device)), data.test.labels)


def _finish(training: Training, assembly: Assembly, data: Data) -> dict[str, Any]:
    product = assembly.product()
    assert training.run is not None
    training.run.save_product(product.state_dict())
    score = test_top1(product, data, training.batch, training.device)
    together = top1_of_parts(training.parts, data.batches("test", training.batch, device=training.device))
    return {"top1": score, "parts": {name: round(value, 4) for name, value in together.items()}}


def _report(
    run: Run, recipe: Recipe, starts: Starts, cursor: Any, result: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    values = {
        "run": str(run.folder),
        "method": recipe.method.name,
        "top1": result["top1"],
        "float_top1": starts.top1.get(STUDENT),
        "val_top1": cursor.best,
        "epochs": recipe.train.epochs,
        "seconds": round(seconds, 1),
        "seed": recipe.seed,
        "before_top1": result["before_top1"],
        "training_seconds": round(cursor.seconds, 1),
        "steps": cursor.steps,
        "parts": result["parts"],
    }
    run.write_json(RESULT, values)
    return values


def _write_facts(run: Run, recipe: Recipe, data: Data) -> None:
    run.write(RECIPE, recipes.dump(recipe))
    run.write_json(ENVIRONMENT, environment())
    run.write_json(
        DATA,
        {
            "shape": data.shape,
            "labels": data.labels,
            "mean": data.mean,
            "std": data.std,
            "images": {name: len(getattr(data, name).labels) for name in ("train", "val", "test")},
        },
    )


def _keep_float(run: Run, state: Mapping[str, Any] | None) -> None:
    if state is not None:
        from safetensors.torch import save

        run.write(FLOAT, save({name: tensor.contiguous().clone() for name, tensor in state.items()}))


@dataclass(frozen=True)
class Finished:
    """A run read back: its product with the trained weights, on the CPU, in evaluation mode."""

    run: Run
    recipe: Recipe
    facts: Facts
    data: Mapping[str, Any]
    product: nn.Module
    assembly: Assembly


def reload(run: Run) -> Finished:
    """The product of a finished run. Raises RunError if it is not finished or does not fit its recipe."""
    recipe = recipes.load(run.folder / RECIPE, paths_exist=False)
    state, data = run.load_product(), run.read_json(DATA)
    facts = Facts(tuple(data["shape"]), len(data["labels"]))
    assembly = assemble(recipe, facts)
    product = assembly.product()
    try:
        product.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"{run.folder}: the product does not fit the recipe: {str(error).splitlines()[-1].strip()}"
        ) from error
    return Finished(run, recipe, facts, data, product.eval(), assembly)


def float_network(finished: Finished) -> nn.Module | None:
    """The student's float start, the network a quantized product has to be compared with; None where there was none."""
    from safetensors.torch import load_file

    from qkd.networks.build import build

    path = finished.run.folder / FLOAT
    if not path.is_file() or finished.assembly.plan.product != STUDENT:
        return None
    entry = finished.recipe.student
    network = build(
        entry.build, classes=finished.facts.classes, channels=finished.facts.shape[0], options=entry.options
    )
    network.load_state_dict(load_file(path))
    return network.eval()


def refuse_changed(run: Run, recipe: Recipe) -> None:
    """Raise RunError naming every key in which the recipe differs from the run's."""
    before, now = (
        recipes.load(run.folder / RECIPE, paths_exist=False).model_dump(mode="json"),
        recipe.model_dump(mode="json"),
    )
    changed = [f"{key} was {json.dumps(a)}, is {json.dumps(b)}" for key, a, b in _differences(before, now)]
    if changed:
        raise RunError(
            f"{run.folder}: the recipe changed since: {'; '.join(changed)}; start a new run instead of --resume"
        )


def _differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*before, *now]))
        return [d for n in names for d in _differences(before.get(n), now.get(n), f"{key}.{n}" if key else n)]
    return [] if before == now else [(key, before, now)]


def latest(root: Path, name: str) -> Run:
    """The newest run of a recipe's name that has a checkpoint. Raises RunError if there is none."""
    found = [p for p in root.glob(f"{name}*") if p.name == name or p.name.removeprefix(f"{name}-").isdigit()]
    found = [p for p in found if (p / LAST).is_file()]
    if not found:
        raise RunError(f"{root / name}: nothing to resume: no run of this name has a checkpoint yet")
    return Run.open(max(found, key=lambda p: (p / LAST).stat().st_mtime))
