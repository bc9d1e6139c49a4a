"""torchdistill's loop, as its example has it, beside the one by hand: both get the same batches, ready in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from distilling import ATTENTION, CLIP, RATE, SOFT, TAPS, TEMPERATURE, Pair, batches, by_hand, networks
from task import cost, job
from torchdistill.core.distillation import get_distillation_box
from torchdistill.misc.log import MetricLogger, SmoothedValue

LAYERS = {"sequential": [], "forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": list(TAPS)}}
WHERE = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
}
PAIRS = {name: {side: {"io": "output", "path": name} for side in ("teacher", "student")} for name in TAPS}
KD = {"key": "KDLoss", "kwargs": {**WHERE, "temperature": TEMPERATURE, "alpha": 1 - SOFT}}
MAPS = {"key": "ATLoss", "kwargs": {"at_pairs": PAIRS, "mode": "code"}}
TERMS = {"kd": {"criterion": KD, "weight": 1.0}, "attention": {"criterion": MAPS, "weight": ATTENTION}}
SGD = {"lr": RATE, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}


def loop(given: list[Pair]) -> Callable[[], None]:
    """One pass over the batches."""
    student, teacher = networks()
    settings = {
        "num_epochs": 1,
        "teacher": {**LAYERS, "requires_grad": False},
        "student": LAYERS,
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": TERMS}},
        "optimizer": {"key": "SGD", "kwargs": SGD, "max_grad_norm": CLIP},
    }
    box = get_distillation_box(teacher, student, {}, settings, torch.device("cpu"), None, False, 1)

    def once() -> None:
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        box.pre_epoch_process(epoch=0)
        for images, labels in meters.log_every(given, 1000, "epoch"):
            start = time.time()
            box.pre_forward_process()
            loss = box.forward_process(images, labels, None)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(images) / (time.time() - start))

    return once


if __name__ == "__main__":
    with job() as asked:
        ready = batches(asked.batch)
        cost(asked, {"by hand": by_hand(*networks(), lambda: ready), asked.tool: loop(ready)}, "by hand")
