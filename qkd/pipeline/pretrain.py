"""Pretraining: the float weights that a network starts from, trained once per architecture, seed, data and settings; cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from qkd import __version__
from qkd.assembly.checkpoint_starts import load_start
from qkd.assembly.ensemble import Ensemble
from qkd.distill.plan import Phase, Plan, Step
from qkd.distill.stages import cut
from qkd.distill.terms import label
from qkd.engine.device import Machine
from qkd.engine.diagnostics import is_finite
from qkd.engine.events import CheckpointLoaded, FloatCached, Listener, PretrainingStarted, ignore
from qkd.engine.metrics import logits
from qkd.engine.train import train
from qkd.engine.training_context import Training
from qkd.errors import RunError, TrainingError
from qkd.networks.start_weights import load_state
from qkd.networks.tracing import trace
from qkd.storage.atomic import wait_for_lock, write_atomic
from qkd.storage.cache import cache_folder
from qkd.storage.checkpoints import LAST, Checkpoints
from qkd.tasks.classification import top1

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qkd.data import Data
    from qkd.recipe import NetworkEntry, Recipe, Train

FLOAT, SCRATCH = "float", "scratch"
LATER = {
    "cutout": None,
    "randaugment": None,
    "mixup": None,
    "cutmix": None,
    "milestones": [0.5, 0.75],
    "nesterov": True,
    "dampen": 0.0,
    "clip_per": "step",
}
"""Settings added later: at these defaults they do not change the key of what is cached."""


@dataclass
class FloatStarts:
    """Loads each network's float weights. ``top1``: the accuracy of each on the test split, in percent."""

    recipe: Recipe
    data: Data
    fabric: Fabric
    folder: Path  # for checkpoints of unfinished pretraining
    machine: Machine = field(default_factory=Machine)
    listen: Listener = ignore
    top1: dict[str, float] = field(default_factory=dict)

    def __call__(self, part: str, entry: NetworkEntry, network: nn.Module) -> None:
        """Load the weights of one float network, training them first where they are not cached."""
        if entry.start_from == SCRATCH:
            return
        if entry.start_from == FLOAT:
            load_state(network, self._pretrained(part, entry, network))
        else:
            self.listen(CheckpointLoaded(part, entry.start_from, str(load_start(entry, network))))
        batches = self.data.batches("test", self.recipe.data.batch, device=self.fabric.device)
        scores = logits(network.to(self.fabric.device), batches)
        self.top1[part] = top1(scores, self.data.test.labels)
        network.to("cpu")

    def _pretrained(self, part: str, entry: NetworkEntry, network: nn.Module) -> dict[str, Tensor]:
        seed = self.recipe.seed_of(part)
        key = self._key(network, seed)
        path = cache_folder() / "float" / f"{key}.safetensors"
        # another run may be training the same network
        with wait_for_lock(path) if self.fabric.world_size == 1 else contextlib.nullcontext():
            state = self.fabric.broadcast(cached_state(path) if self.fabric.is_global_zero else None)
            if state is not None:
                self.listen(FloatCached(part, entry.build))
                return dict(state)
            self.listen(PretrainingStarted(part, entry.build, self.recipe.pretrain.epochs))
            checkpoints = Checkpoints(self.folder / f"float-{key}")
            self._train(network, checkpoints, seed)
            state = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
            if broken := not_finite(state):
                found = f"the float start of {part} ended with numbers that are not finite: {broken}"
                raise TrainingError(f"{found}; take a lower pretrain.rate", key="training.float-start-not-finite")
            if self.fabric.is_global_zero:
                keep_state(path, state)
                checkpoints.clear()
        return state

    def _train(self, network: nn.Module, checkpoints: Checkpoints, seed: int) -> None:
        staged = cut(trace(network), [])
        plan = Plan((Phase("float", (Step(["student"], [label("student")]),)),))
        self.train_in_float(Ensemble({"student": staged}, plan), plan, self.recipe.pretrain, checkpoints, seed)
        network.to("cpu")

    def train_in_float(
        self, ensemble: Ensemble, plan: Plan, settings: Train, checkpoints: Checkpoints, seed: int
    ) -> None:
        """Train a plan of float networks; resumes what an interrupted run of the same folder had done of it."""
        training = Training(
            ensemble=ensemble,
            plan=plan,
            data=self.data,
            settings=settings,
            batch=self.recipe.data.batch,
            seed=seed,
            fabric=self.fabric,
            checkpoints=checkpoints,
            choose=False,
            save_every=60 * self.machine.save_every,
            compile=self.machine.compile,
            listen=self.listen,
        )
        torch.manual_seed(seed)
        saved = self.fabric.broadcast(checkpoints.load(LAST) if self.fabric.is_global_zero else None)
        train(training, saved=saved)

    def _key(self, network: nn.Module, seed: int) -> str:
        """A hash of what the result depends on: architecture (graph and initial weights), seed, data and settings."""
        digest = hashlib.sha256(f"{__version__.rpartition('.')[0]} {trace(network).code}".encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        settings = self.recipe.pretrain.model_dump(mode="json")
        del settings["recompute"], settings["joint_epochs"]  # they change no bit of it
        for name, default in LATER.items():
            if settings[name] == default:
                del settings[name]
        facts = [settings, self.recipe.data.batch, seed, self.data.fingerprint()]
        facts += [self.machine.precision] * (self.machine.precision != "fp32")
        facts += ["averaged"] * (settings["ema"] is not None)  # files from before 0.1 did not hold the average
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()[:24]


def cached_state(path: Path) -> dict[str, Tensor] | None:
    """The cached state dict; None where there is none, or one that is damaged or not finite."""
    try:
        state = dict(load_file(path)) if path.is_file() else None
    except (SafetensorError, OSError):
        return None
    return None if state is None or not_finite(state) else state


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that is not finite; training does not check behind its last step."""
    return next((name for name, tensor in state.items() if not is_finite(tensor)), "")


def keep_state(path: Path, state: Mapping[str, Tensor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: file.write(save(dict(state))))
    except (OSError, RunError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"{path}: cannot keep the float start: {why}; set XDG_CACHE_HOME elsewhere", key="run.cache-not-writable"
        ) from error
