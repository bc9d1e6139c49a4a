"""Train a recipe: float weights, quantization, calibration, training; the product and its result go to a run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from qkd import recipe as recipes
from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.build import STUDENT, Start
from qkd.assembly.checkpoint_starts import CheckpointStarts
from qkd.assembly.export_preview import export_preview
from qkd.assembly.inputs import load_data, spec_of
from qkd.assembly.plan_warnings import plan_warnings
from qkd.data import Data
from qkd.engine.cost import cost
from qkd.engine.device import Machine
from qkd.engine.diagnostics import diagnose_learners
from qkd.engine.distributed import connected, synchronised
from qkd.engine.events import AlreadyFinished, Listener, PlanChecked, RanksConnected, Resumed, ignore
from qkd.engine.loggers import with_loggers
from qkd.engine.metrics import MEAN, classes_of_all, logits
from qkd.engine.reestimation import reestimate_networks
from qkd.engine.state import TrainingState, snapshot
from qkd.engine.train import is_finished, train
from qkd.engine.training_context import Training
from qkd.errors import DataError, ExportError
from qkd.pipeline.collaboration import collaboration, team_of
from qkd.pipeline.joint_start import train_jointly
from qkd.pipeline.prepare import prepare, reestimated_networks
from qkd.pipeline.pretrain import FloatStarts
from qkd.pipeline.resume import changed_environment, is_complete, keep_seeds, recorded_seeds
from qkd.storage.artifacts import DATA, ENVIRONMENT, FLOAT_START, METRICS, RECIPE, RESULT
from qkd.storage.atomic import lock_folder, remove_unfinished
from qkd.storage.checkpoints import LAST
from qkd.storage.environment import environment
from qkd.storage.predictions import Predictions
from qkd.storage.results import TrainResult
from qkd.storage.run import Run
from qkd.tasks.classification import ece, share_right, top1

if TYPE_CHECKING:
    from qkd.recipe import Recipe


def train_recipe(
    recipe: Recipe,
    run: Run | None,
    machine: Machine,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    listen: Listener = ignore,
) -> TrainResult:
    """Train the recipe's product in a run folder. -> the result, as ``result.json`` keeps it

    With ``resume`` it continues behind the newest readable checkpoint, or from the start where there is none yet. Of several
    ranks only the first is given the run; it alone writes files and reports events. Raises Interrupted, with the state
    saved, when a signal asked for the end.
    """
    fabric = machine.fabric()
    with contextlib.ExitStack() as held:
        held.enter_context(connected(fabric))
        folder = Path(fabric.broadcast(str(run.folder) if run else ""))
        if not fabric.is_global_zero:
            run, listen = Run(folder, writes=False), ignore
        assert run is not None
        if resume and fabric.broadcast(run.writes and is_complete(run)):
            listen(AlreadyFinished(str(folder)))
            return TrainResult.from_json(run.read_json(RESULT))
        if resume:
            begun = run.writes and (folder / RECIPE).is_file()
            recipe = keep_seeds(recipe, fabric.broadcast(recorded_seeds(run) if begun else {}))
        if run.writes:
            held.enter_context(lock_folder(folder))
            listen = held.enter_context(with_loggers(machine.loggers, folder, recipe.model_dump(mode="json"), listen))
        return _TrainingJob(recipe, run, machine, fabric, resume, max_steps, listen).result()


@dataclass(frozen=True)
class _TrainingJob:
    recipe: Recipe
    run: Run
    machine: Machine
    fabric: Any
    resume: bool
    max_steps: int | None
    listen: Listener

    def result(self) -> TrainResult:
        start, data = time.perf_counter(), load_data(self.recipe)
        if self.machine.workers is not None:
            data = replace(data, workers=self.machine.workers)
        _require_batches(data, self.recipe.data.batch, self.fabric.world_size)
        if self.run.writes:
            remove_unfinished(self.run.folder)
        facts = environment(**self.machine.facts(self.fabric))
        changed = changed_environment(self.run, facts)
        _write_facts(self.run, self.recipe, data, facts)
        found = self.run.checkpoints.load(LAST) if self.resume and self.run.writes else None
        saved = self.fabric.broadcast(found)
        training, assembly, state = self._resume(data) if saved else self._begin(data)
        self._report_ranks()
        if saved:
            self.listen(Resumed(saved["cursor"]["steps"], changed))
        state = train(training, state, saved)
        result = _finish(training, assembly, data)
        result["finished"] = is_finished(training, state)
        return _report(self.run, self.recipe, state, result, time.perf_counter() - start)

    def _report_ranks(self) -> None:
        if self.fabric.world_size > 1:
            self.listen(RanksConnected(self.fabric.world_size, self.recipe.data.batch, self.recipe.train.rate))

    def _resume(self, data: Data) -> tuple[Training, Assembly, TrainingState | None]:
        assembly = assemble(self.recipe, spec_of(data))
        return self._training(assembly, data), assembly, None

    def _begin(self, data: Data) -> tuple[Training, Assembly, TrainingState]:
        """Float weights, quantization, calibration; then a checkpoint, so that none of it is done twice."""
        if self.run.writes:
            self.run.checkpoints.remove_after(-1, whole=True)
        self.run.write_file(METRICS, "")
        self._check_plan(data)
        starts = FloatStarts(self.recipe, data, self.fabric, self.run.checkpoints.folder, self.machine, self.listen)
        assembly = self._assemble(starts)
        training = self._training(assembly, data)
        before = prepare(training, assembly, data)
        state = TrainingState(facts={"float_top1": starts.top1.get(STUDENT), "before_top1": before})
        content = snapshot(self.fabric, training.ensemble, state)
        if self.run.writes:
            self.run.checkpoints.save(LAST, content, steps=0)
        return training, assembly, state

    def _assemble(self, starts: FloatStarts) -> Assembly:
        """With the float weights of each network, or those of all networks and heads trained together in float."""
        facts = spec_of(starts.data)
        if not self.recipe.pretrain.joint_epochs:
            return assemble(self.recipe, facts, start=partial(_start, self.run, starts, starts.top1))
        joint = train_jointly(starts)
        starts.top1[STUDENT] = joint.top1
        begin = partial(_start, self.run, joint, (STUDENT,))
        return assemble(self.recipe, facts, start=begin, begun=joint.assembly.ensemble)

    def _check_plan(self, data: Data) -> None:
        """Before training, report what is suspicious and what will stay float. Raises SchemeError for what cannot be exact."""
        with torch.random.fork_rng(devices=[]):
            assembly = assemble(self.recipe, spec_of(data), start=CheckpointStarts())
        lines = [str(problem) for problem in plan_warnings(self.recipe, assembly)]
        try:
            lines += export_preview(self.recipe, assembly)
        except ExportError as error:
            lines.append(f"the product will not be exported: {error}")
        if lines:
            self.listen(PlanChecked(lines))

    def _training(self, assembly: Assembly, data: Data) -> Training:
        recipe = self.recipe
        return Training(
            ensemble=assembly.ensemble.to(self.fabric.device).to(memory_format=torch.channels_last),
            plan=assembly.plan,
            data=data,
            settings=recipe.train,
            batch=recipe.data.batch,
            seed=recipe.seed,
            fabric=self.fabric,
            run=self.run,
            checkpoints=self.run.checkpoints,
            reestimated=reestimated_networks(recipe, assembly.plan),
            max_steps=self.max_steps,
            save_every=60 * self.machine.save_every,
            compile=self.machine.compile,
            listen=self.listen,
        )


def _require_batches(data: Data, batch: int, ranks: int) -> None:
    """Raises DataError where an epoch has no batch for every rank."""
    if not data.num_train_batches(batch, ranks):
        images = len(data.train.labels)
        raise DataError(
            f"data.batch: {images} training images in batches of {batch} make no batch for {ranks} ranks; take a larger batch "
            f"or fewer ranks",
            key="data.no-batch-for-each-rank",
        )


def _start(run: Run, start: Start, trained: Container[str], part: str, entry: Any, network: nn.Module) -> None:
    """Load a network's float weights; those of the student, where it is among ``trained``, are saved for comparison."""
    start(part, entry, network)
    if part == STUDENT and part in trained:
        state = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
        run.write_file(FLOAT_START, save(state))


def _finish(training: Training, assembly: Assembly, data: Data) -> dict[str, Any]:
    product = assembly.product()
    assert training.run is not None
    training.run.save_product(product.state_dict())
    scores = logits(product, data.batches("test", training.batch, device=training.device))
    with synchronised(training.fabric, training.ensemble):
        reestimate_networks(training, tuple(training.ensemble.owners), leave_product=True)
    team, batches = team_of(assembly.plan, assembly.setup), data.batches("test", training.batch, device=training.device)
    together = classes_of_all(training.ensemble, batches, team.averaged if team else ())
    labels = data.test.labels.cpu().numpy()
    Predictions(scores.argmax(1).numpy(), labels, data.test_fingerprint()).save(training.run)
    return {
        "top1": top1(scores, data.test.labels),
        "ece": round(ece(scores, data.test.labels), 4),
        "parts": {name: round(share_right(found, labels), 4) for name, found in together.items() if name != MEAN},
        "cost": cost(training),
        "alarms": diagnose_learners(training),
        **collaboration(training, assembly.setup, together, labels),
    }


def _report(run: Run, recipe: Recipe, state: TrainingState, result: Mapping[str, Any], seconds: float) -> TrainResult:
    """The result of the run; also written as ``result.json``."""
    values = {
        "run": str(run.folder),
        "method": recipe.method.name,
        "float_top1": state.facts.get("float_top1"),
        "val_top1": state.best if state.best >= 0 else None,
        "epochs": recipe.train.epochs,
        "seconds": round(seconds, 1),
        "seed": recipe.seed,
        "before_top1": state.facts.get("before_top1"),
        "training_seconds": round(state.seconds, 1),
        "training_cpu_seconds": round(state.cpu_seconds, 1),
        "steps": state.steps,
    }
    report = TrainResult.from_json({**values, **result})
    run.write_json(RESULT, report.to_json())
    return report


def _write_facts(run: Run, recipe: Recipe, data: Data, facts: Mapping[str, Any]) -> None:
    run.write_file(RECIPE, recipes.dump(recipe))
    run.write_json(ENVIRONMENT, facts)
    images = {name: len(getattr(data, name).labels) for name in ("train", "val", "test")}
    run.write_json(DATA, {**data.metadata, "images": images})
