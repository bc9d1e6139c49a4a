"""Oscillation: weights that turn back, counted by hand, and the share of a run's weights that do."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkd.engine.oscillations import WINDOW
from qkd.quantizers import OscillationCounter, rounded_layers
from tests.support.tiny_runs import ALONE, recipe_in, run_of
from tests.support.tiny_wirings import Residual, quantized, weight_layer


def test_turns_are_counted_by_hand() -> None:
    """Five weights on three of a channel's four levels, -0.5, 0.5 and 1.5 steps: two go to and fro, one moves on and stays, one
    moves twice, one rests."""
    layer = weight_layer("lsq", 2)
    courses = {0: [0, 1, 0, 1, 0], 1: [0, -1, 0, -1, -1], 2: [0, 1, 1, 1, 1], 3: [-1, 0, 1, 1, 0], 4: [0, 0, 0, 0, 0]}
    step = layer.weight_quant.tensor_quant.step.detach().view(-1)[0]
    flat = layer.weight.data.view(len(layer.weight), -1)

    def go(time: int) -> None:
        for weight, course in courses.items():
            flat[0, weight] = (course[time] + 0.5) * step

    go(0)
    counter = OscillationCounter([layer])
    for time in range(1, 5):
        go(time)
        counter.update()
    turns = counter.turns[0].view(len(layer.weight), -1)
    assert turns[0, :5].tolist() == [3, 2, 0, 1, 0] and int(turns.sum()) == 6
    assert counter.share() == pytest.approx(2 / layer.weight.numel())


def test_layers_of_many_bits_are_left_out() -> None:
    network = quantized(Residual, "w2a2")
    low, every = rounded_layers(network, 4), rounded_layers(network)
    assert 0 < len(low) < len(every) and {layer.weight_quant.tensor_quant.bits for layer in low} == {2}


def test_a_run_tells_how_many_weights_oscillate(tmp_path: Path) -> None:
    data = {"name": "fake", "batch": 4, "size": 16, "train": 80, "test": 16, "classes": 4}
    recipe = recipe_in(tmp_path, **ALONE, data=data, train={"epochs": 2, "rate": 0.2})
    run, _ = run_of(tmp_path, recipe)
    shares = [line["oscillating/student"] for line in run.metrics() if "val/top1" in line]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    assert WINDOW > 20  # so that every one of the twenty steps of an epoch was watched
    cut, _ = run_of(tmp_path, recipe, "cut", max_steps=25)
    assert ["oscillating/student" in line for line in cut.metrics() if "val/top1" in line] == [True, False]
