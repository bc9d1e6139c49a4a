"""Data sets with a layout of their own: ImageNet, Tiny ImageNet, and those of the `datasets` library."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from qkd import data
from qkd.data.streaming import ImageFiles
from qkd.errors import DataError
from tests.support.refusals import Refused
from tests.support.tiny_data import noise

WNIDS = ("n01443537", "n01629819")


def tiny(root: Path) -> Path:
    """Tiny ImageNet as it is unpacked, of two classes."""
    base = root / "tiny-imagenet-200"
    for wnid in WNIDS:
        for number in range(10):
            noise(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", number, (64, 64))
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("n01443537_0.JPEG\t0\t10\t63\t58\n")
    for number in range(4):
        noise(base / "val" / "images" / f"val_{number}.JPEG", 50 + number, (64, 64))
    lines = [f"val_{number}.JPEG\t{WNIDS[number % 2]}\t0\t32\t44\t62\n" for number in range(4)]
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    (base / "test" / "images").mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(WNIDS))
    return base


def test_tiny_imagenet_is_read_from_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny(tmp_path)
    found = data.load("tiny_imagenet", {"root": tmp_path, "val": 0.2})
    assert found.shape == (3, 64, 64)
    assert found.labels == WNIDS
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [16, 4, 4]
    assert found.test.labels.tolist() == [0, 0, 1, 1]
    expected = np.asarray(Image.open(base / "val/images/val_2.JPEG")).transpose(2, 0, 1)
    assert torch.equal(found.test.images[1], torch.from_numpy(expected.copy()))
    monkeypatch.setenv("QKD_DATA", str(base))
    assert data.load("tiny_imagenet", {"val": 0.2}).fingerprint() == found.fingerprint()
    streamed = data.load("tiny_imagenet", {"memory": False, "limit": 4, "val": 0.5})
    assert isinstance(streamed.train.images, ImageFiles)
    assert len(streamed.train.labels) + len(streamed.val.labels) == len(streamed.test.labels) == 4


def test_what_is_wrong_with_tiny_imagenet_is_named(tmp_path: Path, refused: Refused) -> None:
    def load() -> None:
        data.load("tiny_imagenet", {"root": tmp_path})

    with refused(DataError, "data.missing-files"):
        load()
    base = tiny(tmp_path)
    annotations = base / "val" / "val_annotations.txt"
    annotations.write_text(f"val_0.JPEG\t{WNIDS[0]}\t1\nval_1.JPEG\tn000\t1\n")
    with refused(DataError, "data.invalid-annotation"):
        load()
    annotations.write_text(f"val_0.JPEG\t{WNIDS[0]}\t1\n")
    with refused(DataError, "data.class-missing-in-list"):
        load()
    annotations.write_bytes(b"\xff")
    with refused(DataError, "data.unreadable-list"):
        load()
    noise(base / "train" / WNIDS[0] / "images" / "note.txt.png", 1)
    (base / "train" / WNIDS[0] / "notes.txt").write_text("?")
    with refused(DataError, "data.not-a-class-folder"):
        load()


def test_imagenet_stays_in_its_files(tmp_path: Path, refused: Refused) -> None:
    for part, count in (("train", 10), ("val", 2)):
        for wnid in WNIDS:
            for number in range(count):
                noise(tmp_path / "imagenet" / part / wnid / f"{wnid}_{number}.JPEG", number, (50, 40))
    found = data.load("imagenet", {"root": tmp_path, "size": 32, "val": 0.1})
    assert found.shape == (3, 32, 32)
    assert found.augment == "resized+flip"
    assert found.mean == (0.485, 0.456, 0.406)
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [18, 2, 4]
    assert isinstance(found.train.images, ImageFiles)
    [batch] = data.Data.batches(found, "test", 4)
    assert batch.images.shape == (4, 3, 32, 32)
    first = next(found.train_batches(4, seed=0, augment=True))
    assert first.images.std() > 0.5
    with refused(DataError, "data.missing-files"):
        data.load("imagenet", {"root": tmp_path / "nowhere"})
    (tmp_path / "imagenet" / "val" / WNIDS[0]).rename(tmp_path / "imagenet" / "val" / "n02")
    with refused(DataError, "data.differing-classes"):
        data.load("imagenet", {"root": tmp_path})


class Column:
    names = ("dark", "bright")


class Rows(list):
    """As much of a split of `datasets` as is used: rows, columns by name, features."""

    features: ClassVar[dict[str, Any]] = {"picture": object(), "class": Column()}

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def rows(count: int) -> Rows:
    return Rows(
        {"picture": Image.new("L", (40, 30), 200 * (number % 2)), "class": number % 2} for number in range(count)
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for `datasets`."""
    module = types.ModuleType("datasets")
    module.load_from_disk = lambda path: {"train": rows(40), "test": rows(6)}
    module.load_dataset = lambda name: {"train": rows(20), "test": rows(6)}
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


COLUMNS = {"image": "picture", "label": "class"}


def test_a_data_set_of_the_library_is_read(tmp_path: Path, library: types.ModuleType) -> None:
    found = data.load("huggingface", {"path": str(tmp_path), **COLUMNS, "size": 16, "val": 0.25})
    assert found.shape == (3, 16, 16)
    assert found.labels == ("dark", "bright")
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [30, 10, 6]
    assert torch.equal(found.test.images[:, 0, 0, 0], 200 * found.test.labels.to(torch.uint8))
    fetched = data.load("huggingface", {"path": "some/name", **COLUMNS, "download": True})
    assert len(fetched.train.labels) == 18


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"path": "some/name"}, "data.missing-folder"),
        ({"image": "pictrue"}, "data.unknown-column"),
        ({"label": "clas"}, "data.unknown-column"),
        ({"test": "tets"}, "data.unknown-split"),
        ({"image": "class"}, "data.not-an-image"),
        ({"label": "picture"}, "data.labels-not-integers"),
    ],
)
def test_mistakes_about_it_are_named(
    tmp_path: Path, library: types.ModuleType, refused: Refused, options: dict[str, Any], key: str
) -> None:
    with refused(DataError, key):
        data.load("huggingface", {"path": str(tmp_path), **COLUMNS, **options})


def test_without_the_library_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused(DataError, "extra.not-installed"):
        data.load("huggingface", {"path": str(tmp_path)})


def test_the_real_library_is_used_as_it_wants_to_be(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    content = {
        "image": [np.full((20, 24, 3), 10 * n, np.uint8) for n in range(20)],
        "label": [n % 2 for n in range(20)],
    }
    whole = datasets.Dataset.from_dict(content, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(4))}).save_to_disk(str(tmp_path / "set"))
    found = data.load("huggingface", {"path": str(tmp_path / "set"), "size": 16})
    assert found.labels == ("a", "b")
    assert found.test.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
