"""Processor time of one training step of QAT, KD and CMT-KD with the same three low-bit teachers (4, 6, 8 bits; student W2A2).

    python benchmarks/method_cost.py                       # ResNet-8, batches of 64 images, 32x32
    python benchmarks/method_cost.py --size 16 --json costs.json

A step is forward, backward, clipping and SGD on one batch that stays the same, networks with the kernels that training uses.
The look at gradient shares, which training takes ten times in a phase, is timed beside it. Ratios are of medians, to KD.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from interleaved import Work, arguments, machine, medians, ratios, table, write
from torch import nn

from qkd.assembly.assemble import assemble
from qkd.data import Batch
from qkd.distill.plan import networks_needed
from qkd.distill.terms import weighted_sum
from qkd.engine.device import keep_memory
from qkd.engine.gradient_shares import gradient_shares
from qkd.engine.optimizer import optimizer_for, set_rate
from qkd.quantizers import calibrate, compile_cores
from qkd.recipe.files import load
from qkd.tasks.spec import DataSpec

CLASSES = 10
METHODS = {
    "qat": "{name: qat}",
    "kd": "{name: kd}",
    "cmtkd": "{name: cmtkd}",
    "cmtkd, each, adam": "{name: cmtkd, alpha_teachers: 1, teach: each, importance_optimizer: adam}",
    "cmtkd, frozen": "{name: cmtkd, teachers: frozen}",
    "cmtkd, prepared, frozen": "{name: cmtkd, prepare: 0.5, teachers: frozen}",
}


def works_of(method: str, batch: Batch) -> tuple[Work, Work]:
    """A step of the last phase, and a look at its gradient shares."""
    recipe = load("digits_cmtkd_w2a2", [f"method={method}"])
    assembly = assemble(recipe, DataSpec(tuple(batch.images.shape[1:]), CLASSES))  # type: ignore[arg-type]
    ensemble, plan = assembly.ensemble, assembly.plan
    for network in ensemble.networks.values():
        calibrate(network.network, [batch.images.cpu()])
        compile_cores(network)
    ensemble.to(batch.images.device, memory_format=torch.channels_last)
    (step,) = plan.phases[-1].steps
    active, optimizer = sorted(networks_needed(plan, step)), optimizer_for(step, ensemble, plan, recipe.train)
    set_rate(optimizer, 1e-3)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ensemble.set_learners(step.learners)

    def train() -> None:
        optimizer.zero_grad()
        outputs = ensemble(batch.images, active, 0.5)
        weighted_sum({term.name: term(outputs, batch) for term in step.terms}, step.terms, 0.5).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()

    look: Callable[[], object] = lambda: gradient_shares(  # noqa: E731
        ensemble, lambda: ensemble(batch.images, active, 0.5), step, batch, 0.5
    )
    return train, look


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as training does
    rounds = 5 if options.quick else options.rounds
    images = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    images = images.to(options.device, memory_format=torch.channels_last)
    ids = torch.arange(len(images), device=images.device)
    works = {name: works_of(method, Batch(images, ids % CLASSES, ids)) for name, method in METHODS.items()}
    rows, figures = [], {}
    times, looks = (
        medians({name: pair[kind] for name, pair in works.items()}, rounds=rounds, warm=3, device=options.device)
        for kind in (0, 1)
    )
    found = ratios(times, "kd")
    for name in works:
        rows.append([name, times[name], found[name], looks[name]])
        figures[name] = {"milliseconds": times[name], "to kd": found[name], "look": looks[name]}
    print(machine(options.device), {"batch": len(images), "size": options.size, "rounds": rounds})
    print(table(["", "step ms", "to kd", "look ms"], rows))
    write(options.json, figures, options.device)


if __name__ == "__main__":
    main()
