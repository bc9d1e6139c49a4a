"""Joint start: a method is trained with every network in float, so that its heads are trained before they are quantized.

A float start is of one network. What a method adds, such as the projector into a teacher's classifier, would begin
quantization-aware training with random weights of few bits, behind a backbone that never saw it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qkd import __version__
from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.inputs import spec_of
from qkd.engine.events import JointStartCached, JointTrainingStarted
from qkd.engine.metrics import test_top1
from qkd.errors import TrainingError
from qkd.options import is_user_code
from qkd.pipeline.pretrain import FloatStarts, cached_state, keep_state, not_finite
from qkd.storage.atomic import wait_for_lock
from qkd.storage.cache import cache_folder
from qkd.storage.checkpoints import Checkpoints

if TYPE_CHECKING:
    from qkd.recipe import NetworkEntry


@dataclass(frozen=True)
class JointStart:
    """Loads the float weights of networks that were trained together. ``top1``: of the float product on the test split, in %."""

    assembly: Assembly
    top1: float

    def __call__(self, part: str, entry: NetworkEntry, network: nn.Module) -> None:
        """Load the weights of one float network. Layers that it never calls keep theirs: they are in no graph."""
        network.load_state_dict(self.assembly.ensemble.networks[part].network.state_dict(), strict=False)


def train_jointly(starts: FloatStarts) -> JointStart:
    """Assemble the recipe in float, each network from its own start, and train its method for ``pretrain.joint_epochs``.

    The result is cached for later runs, whatever their bits; not that of a method of the user's own, whose code may change.
    """
    recipe, data = starts.recipe, starts.data
    assembly = assemble(recipe.in_float(), spec_of(data), start=starts)
    key = _key(starts, assembly)
    keeps = not is_user_code(recipe.method.name)
    path = cache_folder() / "joint" / f"{key}.safetensors"
    # another run may be training the same
    with wait_for_lock(path) if keeps and starts.fabric.world_size == 1 else contextlib.nullcontext():
        state = starts.fabric.broadcast(cached_state(path) if keeps and starts.fabric.is_global_zero else None)
        if state is not None:
            starts.listen(JointStartCached(recipe.method.name))
            assembly.ensemble.load_state_dict(state)
        else:
            _train(starts, assembly, key)
            if keeps and starts.fabric.is_global_zero:
                keep_state(path, _state(assembly))
    device = starts.fabric.device
    found = test_top1(assembly.product().to(device), data, recipe.data.batch, device)
    assembly.ensemble.to("cpu")
    return JointStart(assembly, found)


def _train(starts: FloatStarts, assembly: Assembly, key: str) -> None:
    """Train the plan; resumes what an interrupted run of the same folder had done of it."""
    recipe = starts.recipe
    epochs = recipe.pretrain.joint_epochs
    assert epochs is not None
    starts.listen(JointTrainingStarted(recipe.method.name, epochs))
    checkpoints = Checkpoints(starts.folder / f"joint-{key}")
    settings = recipe.pretrain.model_copy(update={"epochs": epochs})
    starts.train_in_float(assembly.ensemble, assembly.plan, settings, checkpoints, recipe.seed)
    if broken := not_finite(_state(assembly)):
        found = f"{recipe.method.name} in float ended with numbers that are not finite: {broken}"
        raise TrainingError(f"{found}; take a lower pretrain.rate", key="training.float-start-not-finite")
    if starts.fabric.is_global_zero:
        checkpoints.clear()


def _state(assembly: Assembly) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous().clone() for name, tensor in assembly.ensemble.state_dict().items()}


def _key(starts: FloatStarts, assembly: Assembly) -> str:
    """A hash of what the result depends on: graphs and weights at the beginning, method, matched layers, data and settings."""
    recipe = starts.recipe
    digest = hashlib.sha256(__version__.rpartition(".")[0].encode())
    for name, network in assembly.ensemble.networks.items():
        digest.update(f"{name} {network.network.code}".encode())
    for name, tensor in assembly.ensemble.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    settings = recipe.pretrain.model_dump(mode="json", exclude={"recompute"})
    facts = [settings, recipe.method.model_dump(mode="json"), recipe.match, recipe.data.batch, recipe.seed]
    facts += [starts.data.fingerprint(), starts.machine.precision]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:24]
