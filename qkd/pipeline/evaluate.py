"""Measures the accuracy of a run or of an ONNX file on test images: those of its own recipe or of another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from qkd import recipe as recipes
from qkd.assembly.inputs import load_data
from qkd.data import Data
from qkd.engine.device import Machine
from qkd.engine.metrics import test_top1
from qkd.errors import DataError, UsageError
from qkd.export import emulate, matching_input_of, predict, read_metadata
from qkd.pipeline.reload import reload_product
from qkd.storage.artifacts import RECIPE, STUDENT_ONNX
from qkd.storage.results import EvalResult
from qkd.storage.run import Run
from qkd.tasks.classification import top1


class EvalImages(NamedTuple):
    """Test images (N, C, H, W), normalised as float32 and as uint8, and their labels (N,)."""

    images: np.ndarray
    uint8: np.ndarray
    labels: np.ndarray


def eval_images(run: Run) -> EvalImages | None:
    """The test images of a run's recipe; None where the data is no longer there."""
    try:
        return _sample(_data_for(run.folder / STUDENT_ONNX, None))
    except DataError:
        return None


def evaluate_file_or_run(
    run_or_file: Path, *, recipe: str | None, integer: bool, device: str = "auto", threads: int | None = None
) -> EvalResult:
    """Top-1 of a run's trained student, or of an ONNX file, on test images.

    ``recipe`` names the recipe whose test images are used; by default that of the run, or of the run whose folder the file is
    in. They are normalised as in training where the file says how. ``integer``: run the ONNX file in the integer emulator.
    Raises DataError if no test data is known or it does not fit; UsageError for a file and a device other than the CPU.
    """
    path = file_of(run_or_file, integer)
    if path is None:
        return _of_run(Run.open(run_or_file), recipe, Machine(device, threads=threads))
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {device}: an ONNX file runs on the CPU here; leave it out", key="eval.file-on-another-device"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file; `qkd export` writes one", key="eval.no-such-file")
    data = _as_trained(_data_for(path, recipe), json.loads(read_metadata(path).get("preprocessing", "{}")))
    sample = _sample(data)
    images = matching_input_of(path, sample.images, sample.uint8, data.classes)
    outputs = emulate(path, images) if integer else predict(path, images, threads=threads)
    return EvalResult(top1(torch.from_numpy(outputs), torch.from_numpy(sample.labels)), len(sample.labels))


def file_of(run_or_file: Path, integer: bool) -> Path | None:
    """The ONNX file to evaluate; None for the trained student of a run in PyTorch."""
    if not run_or_file.is_dir():
        return run_or_file
    return run_or_file / STUDENT_ONNX if integer else None


def _of_run(run: Run, recipe: str | None, machine: Machine) -> EvalResult:
    finished = reload_product(run)
    data = load_data(finished.recipe if recipe is None else recipes.load(recipe))
    wanted, found = (finished.facts.shape, finished.facts.classes), (data.shape, data.classes)
    if wanted != found:
        raise DataError(
            f"{run.folder}: was trained on {_words(*wanted)}; the data has {_words(*found)}", key="eval.other-data"
        )
    fabric, data = machine.fabric(), _as_trained(data.with_test_in_memory(), finished.data)
    value = test_top1(finished.product.to(fabric.device), data, finished.recipe.data.batch, fabric.device)
    return EvalResult(value, len(data.test.labels))


def _words(shape: tuple[int, int, int], classes: int) -> str:
    return f"images of {' x '.join(map(str, shape))} (channels, height, width) and {classes} classes"


def _as_trained(data: Data, how: Mapping[str, Any]) -> Data:
    """The data, normalised by mean and standard deviation of the training images where they are known and fit."""
    if len(how.get("mean", ())) != data.shape[0]:
        return data
    return replace(data, mean=tuple(how["mean"]), std=tuple(how["std"]))


def _sample(data: Data) -> EvalImages:
    return EvalImages(data.normalize(data.test.images).numpy(), data.test.images[:].numpy(), data.test.labels.numpy())


def _data_for(path: Path, recipe: str | None) -> Data:
    own = path.parent / RECIPE  # the data of a run may be gone by now; load_data raises then
    if recipe is None and not own.is_file():
        raise DataError(
            f"{path}: stands in no run folder; name the recipe whose test data to use with --data", key="eval.no-recipe"
        )
    return load_data(
        recipes.load(own, paths_exist=False) if recipe is None else recipes.load(recipe)
    ).with_test_in_memory()
