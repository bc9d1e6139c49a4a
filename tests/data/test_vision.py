"""CIFAR, FashionMNIST, SVHN and data sets of the user: read without executing anything, never downloaded unasked."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkd import data, recipe
from qkd.data.root import data_root
from qkd.data.vision import CIFAR10, CIFAR100, CifarLayout
from qkd.errors import DataError
from tests.support.recipe_texts import changed
from tests.support.refusals import Refused


def write_cifar(root: Path, layout: CifarLayout, test: str, each: int = 20, classes: int = 10) -> np.ndarray:
    """Files as the archive holds them. -> the records of the first"""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    first = np.empty(0)
    for name in (*layout.train, test):
        records = draw.integers(0, 256, (each, layout.labels + 3072), dtype=np.uint8)
        records[:, layout.labels - 1] = np.arange(each) % classes
        first = records if name == layout.train[0] else first
        records.tofile(folder / name)
    (folder / layout.names).write_text("\n".join(f"class{number}" for number in range(classes)) + "\n\n")
    return first


def test_cifar10_is_read_from_its_bytes(tmp_path: Path) -> None:
    records = write_cifar(tmp_path, CIFAR10, "test_batch.bin")
    found = data.load("cifar10", {"root": tmp_path, "val": 0.2})
    assert found.shape == (3, 32, 32)
    assert found.labels == tuple(f"class{number}" for number in range(10))
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [80, 20, 20]
    everything = torch.cat([found.train.images, found.val.images])
    first = torch.from_numpy(records[0, 1:].reshape(3, 32, 32))
    assert (everything == first).all((1, 2, 3)).sum() == 1
    assert found.augment == "crop+flip"
    assert data.load("cifar10", {"root": tmp_path / CIFAR10.folder, "val": 0.2}).fingerprint() == found.fingerprint()
    small = data.load("cifar10", {"root": tmp_path, "limit": 50, "augment": False})
    assert len(small.train.labels) + len(small.val.labels) == 50
    assert small.augment == "none"


def test_cifar100_counts_the_fine_label(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR100, "test.bin", each=200, classes=100)
    found = data.load("cifar100", {"root": tmp_path, "val": 0.5})
    assert torch.bincount(found.test.labels).tolist() == [2] * 100


def test_what_is_missing_damaged_or_pickled_is_named(tmp_path: Path, refused: Refused) -> None:
    with refused(DataError, "data.missing-files"):
        data.load("cifar10", {"root": tmp_path})
    (tmp_path / "cifar-10-batches-py").mkdir()
    with refused(DataError, "data.pickled"):
        data.load("cifar10", {"root": tmp_path})
    write_cifar(tmp_path, CIFAR10, "test_batch.bin")
    (tmp_path / CIFAR10.folder / "data_batch_3.bin").write_bytes(b"short")
    with refused(DataError, "data.damaged-file"):
        data.load("cifar10", {"root": tmp_path})
    for name in ("fashion_mnist", "svhn"):
        with refused(DataError, "data.missing-files"):
            data.load(name, {"root": tmp_path})


def test_fashion_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    found = data.load("fashion_mnist", {"root": tmp_path, "val": 0.25})
    assert found.shape == (1, 28, 28)
    assert torch.equal(found.test.images[:, 0], torch.from_numpy(images))


def test_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QKD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root(None) == tmp_path / "cache" / "qkd" / "data"
    monkeypatch.setenv("QKD_DATA", str(tmp_path / "data"))
    assert data_root(None) == tmp_path / "data"
    assert data_root(tmp_path) == tmp_path


OWN = '''
import numpy as np, torch
from torch.utils.data import Dataset

class Squares(Dataset):
    """Bright or dark, as (H, W) arrays."""
    classes = ["dark", "bright"]
    def __init__(self, split, *, size: int = 16):
        self.size, self.count = size, {"train": 20, "val": 6, "test": 8}[split]
    def __len__(self):
        return self.count
    def __getitem__(self, number):
        return np.full((self.size, self.size), 200 * (number % 2), dtype=np.uint8), number % 2

def arrays(*, count: int = 40):
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    return {"train": (images, np.arange(count) % 4), "test": (images[:8], np.arange(8) % 4), "augment": "crop"}

def floats():
    return {"train": (torch.zeros(4, 3, 8, 8), [0, 1, 0, 1]), "test": (torch.zeros(4, 3, 8, 8), [0, 1, 0, 1])}

def few():
    return arrays(count=12)

def nothing():
    return 3

class Missing(Squares):
    def __getitem__(self, number):
        raise KeyError("no such tape")

class Named(Squares):
    def __getitem__(self, number):
        return super().__getitem__(number)[0], "cat"

class Endless(Dataset):
    def __init__(self, split):
        pass

def broken():
    raise FileNotFoundError("no tape in the drive")
'''


def own(folder: Path, name: str, **options: Any) -> data.Data:
    (folder / "own.py").write_text(OWN)
    return data.load(f"{folder / 'own.py'}:{name}", options)


def test_a_dataset_of_the_user(tmp_path: Path) -> None:
    found = own(tmp_path, "Squares", size=8)
    assert found.shape == (1, 8, 8)
    assert found.labels == ("dark", "bright")
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [20, 6, 8]
    assert found.train.images[1].unique().tolist() == [200]


def test_a_function_that_gives_arrays(tmp_path: Path) -> None:
    found = own(tmp_path, "arrays")
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [36, 4, 8]
    assert found.labels == ("0", "1", "2", "3")
    assert found.augment == "crop"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("floats", "user-data.wrong-images"),
        ("few", "user-data.too-few-to-hold-back"),
        ("nothing", "user-data.wrong-result"),
        ("broken", "user-data.failed"),
        ("missing", "user-code.unknown-name"),
        ("Missing", "user-data.failed-item"),
        ("Named", "user-data.failed-item"),
        ("Endless", "user-data.no-length"),
    ],
)
def test_mistakes_in_a_users_data_set_are_named(tmp_path: Path, refused: Refused, name: str, key: str) -> None:
    with refused(DataError, key):
        own(tmp_path, name)


def test_a_recipe_may_name_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "r.yaml").write_text(changed(data="{name: './own.py:arrays', count: 60, batch: 4}"))
    loaded = recipe.load(tmp_path / "r.yaml")
    assert loaded.data.options == {"count": 60}
    assert len(data.load(loaded.data.name, loaded.data.options).train.labels) == 56
