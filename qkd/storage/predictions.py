"""The classes that the product of a run gives the test images, kept so that runs can be compared image by image."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np

from qkd.errors import RunError
from qkd.storage.artifacts import PREDICTIONS
from qkd.storage.json_record import JsonRecord
from qkd.storage.run import Run


@dataclass(frozen=True, eq=False)
class Predictions:
    """``predicted`` and ``labels``: a class for each test image (N,), in the order of the split.

    ``test_set``: a fingerprint of images and labels (`qkd.data.Data.test_fingerprint`).
    """

    predicted: np.ndarray
    labels: np.ndarray
    test_set: str

    @property
    def right(self) -> np.ndarray:
        """Which images were classified as their label says, (N,) bool."""
        return self.predicted == self.labels

    def save(self, run: Run) -> None:
        """Write them into the folder of a run, two or four bytes for each class. Raises RunError."""
        most = max(int(each.max(initial=0)) for each in (self.predicted, self.labels))
        kind = np.uint16 if most <= np.iinfo(np.uint16).max else np.uint32
        content = io.BytesIO()
        np.savez(
            content,
            predicted=self.predicted.astype(kind),
            labels=self.labels.astype(kind),
            test_set=np.array(self.test_set),
        )
        run.write_file(PREDICTIONS, content.getvalue())


def read_predictions(run: Run) -> Predictions:
    """The predictions of a run. Raises RunError if they are missing, as in runs of earlier versions, or damaged."""
    path = run.folder / PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as found:
            predictions = Predictions(found["predicted"], found["labels"], str(found["test_set"]))
        if predictions.predicted.shape != predictions.labels.shape or predictions.labels.ndim != 1:
            raise ValueError("not a class for each label")
    except FileNotFoundError as error:
        message = f"{path}: missing; the run is not finished, or an earlier version of qkd trained it"
        raise RunError(message, key="run.no-predictions") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: damaged: {error}", key="run.damaged-file") from error
    return predictions


@dataclass(frozen=True)
class PairedRuns(JsonRecord):
    """Runs compared with others on the same test images: a pair, or several pairs of equal seeds.

    ``difference``: top-1 of ``runs`` minus that of ``beside``, in points, the mean over the pairs, ``std`` its sample standard
    deviation. ``only_runs`` and ``only_beside``: images that only the one, and only the other gets right (of several pairs:
    in more of them). ``p``: exact and two-sided, McNemar's test (of several pairs the sign test over images). ``why_not``: why
    they could not be compared; the rest is None then.
    """

    runs: tuple[str, ...] | None = None
    beside: tuple[str, ...] | None = None
    seeds: tuple[int | None, ...] | None = None
    images: int | None = None
    difference: float | None = None
    std: float | None = None
    only_runs: int | None = None
    only_beside: int | None = None
    p: float | None = None
    why_not: str | None = None
