"""Predictions come back as they were written, in a file that needs no pickle; what is missing or damaged is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qkd.errors import RunError
from qkd.storage.predictions import Predictions, read_predictions
from qkd.storage.run import Run
from tests.support.refusals import Refused


@pytest.mark.parametrize(("most", "kind"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_what_is_written_is_read_in_few_bytes(tmp_path: Path, most: int, kind: type) -> None:
    run, labels = Run(tmp_path), np.array([0, 3, most], dtype=np.int64)
    Predictions(np.array([0, 2, most], dtype=np.int64), labels, "a" * 64).save(run)
    found = read_predictions(run)
    assert found.predicted.dtype == found.labels.dtype == kind
    assert found.predicted.tolist() == [0, 2, most] and found.labels.tolist() == labels.tolist()
    assert found.right.tolist() == [True, False, True] and found.test_set == "a" * 64
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_a_run_without_predictions_is_named(tmp_path: Path, refused: Refused) -> None:
    with refused(RunError, "run.no-predictions"):
        read_predictions(Run(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK half", b"no archive at all"])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"predictions\.npz: damaged"):
        read_predictions(Run(tmp_path))


@pytest.mark.parametrize("labels", [np.zeros(2), np.zeros((3, 1))])
def test_predictions_of_other_labels_are_damaged(tmp_path: Path, labels: np.ndarray) -> None:
    Predictions(np.zeros(3), labels, "a").save(Run(tmp_path))
    with pytest.raises(RunError, match="not a class for each label"):
        read_predictions(Run(tmp_path))
