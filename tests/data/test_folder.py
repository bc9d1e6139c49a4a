"""Folders of images: nothing is lost, and all that is wrong with one is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qkd.data import Split, load
from qkd.data.folder import folder
from qkd.errors import DataError


def image(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "P") else (value, 255 - value, 7)[: len(mode)]
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, ten images each to train on and two to test with; the red channel numbers them."""
    for at in range(10):
        image(tmp_path / "train" / "cat" / f"{at:02}.png", at)
        image(tmp_path / "train" / "dog" / f"{at:02}.PNG", 100 + at)
    for at in range(2):
        image(tmp_path / "test" / "cat" / f"{at}.png", 10 + at)
        image(tmp_path / "test" / "dog" / "more" / f"{at}.png", 110 + at)
    return tmp_path


def reds(split: Split) -> list[int]:
    return sorted(split.images[:, 0, 0, 0].tolist())


def test_a_folder_is_read_whole(root: Path) -> None:
    data = folder(root=root, size=8, val=0.2)
    assert data.labels == ("cat", "dog")
    assert data.shape == (3, 8, 8)
    assert data.augment == "crop+flip"
    assert reds(data.test) == [10, 11, 110, 111]
    assert sorted(reds(data.train) + reds(data.val)) == [*range(10), *range(100, 110)]
    assert data.val.labels.tolist() == [0, 0, 1, 1]
    for split in (data.train, data.val, data.test):
        assert torch.equal(split.images[:, 0, 0, 0] >= 100, split.labels == 1)
    assert data.fingerprint() == folder(root=root, size=8, val=0.2).fingerprint()


def test_a_folder_with_a_validation_part_of_its_own(root: Path) -> None:
    image(root / "val" / "cat" / "v.png", 50)
    image(root / "val" / "dog" / "v.png", 150)
    data = folder(root=root, size=8, augment=False)
    assert reds(data.val) == [50, 150]
    assert len(data.train.labels) == 20
    assert data.augment == "none"


def test_a_limit_takes_the_same_number_of_each_class(root: Path) -> None:
    data = folder(root=root, size=8, val=0.0, limit=6)
    assert torch.bincount(data.train.labels).tolist() == [3, 3]
    assert len(data.val.labels) == 0
    assert len(data.test.labels) == 4


def test_images_of_other_sizes_and_modes_are_fitted(root: Path) -> None:
    image(root / "test" / "cat" / "wide.png", 200, (32, 16))
    image(root / "test" / "cat" / "grey.jpg", 201, (8, 8), "L")
    (root / "test" / ".DS_Store").write_text("clutter")
    (root / "test" / "cat" / "Thumbs.db").write_text("clutter")
    data = folder(root=root, size=8)
    assert {200, 201} <= set(reds(data.test))


def test_everything_wrong_with_a_folder_is_said(root: Path, tmp_path: Path) -> None:
    def said() -> str:
        with pytest.raises(DataError) as error:
            folder(root=root)
        return str(error.value).replace(str(root), "ROOT")

    def broken(name: str, content: bytes = b"no image") -> Path:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
        return root / name

    with pytest.raises(DataError, match=r"nowhere does not exist; expected: .*nowhere/train/<class>/ and"):
        folder(root=tmp_path / "nowhere")
    paths = [broken(f"train/dog/{name}.jpg") for name in "abcdefg"]
    assert said().startswith("7 unreadable image(s): ROOT/train/dog/a.jpg (UnidentifiedImageError: ")
    assert said().endswith("and 2 more")
    assert "f.jpg" not in said()
    for path in paths:
        path.unlink()
    whole = (root / "train/cat/00.png").read_bytes()
    half = broken("train/cat/half.png", whole[: len(whole) // 2])
    assert "1 unreadable image(s): ROOT/train/cat/half.png (" in said()
    half.unlink()
    deep = root / "train" / "cat" / "deep.png"
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(deep)
    assert "more than 8 bits per channel (mode I;16), save it with 8" in said()
    test = broken("test/dog/half.png")
    assert re.search(
        r"image\(s\): ROOT/train/cat/deep.png \(.*; 1 unreadable image\(s\): ROOT/test/dog/half.png", said()
    )
    test.unlink()
    deep.unlink()
    stray = broken("train/lonely.png")
    assert said().startswith("ROOT/train: not an image in a folder of its class: lonely.png (known: .png .jpg")
    stray.unlink()
    (root / "train" / "fox").mkdir()
    strays = [broken("train/lonely.png"), broken("test/notes.txt")]
    assert re.fullmatch(
        r"ROOT/train: not .*: lonely.png \(.*\); no images of class fox; .*; ROOT/test: not .*: notes.txt \(.*\)",
        said(),
    )
    for path in strays:
        path.unlink()
    assert said() == "ROOT/train: no images of class fox; remove the folder or fill it"
    image(root / "train" / "fox" / "0.png", 1)
    assert said() == "ROOT: train and test hold different classes: test lacks fox"
    image(root / "test" / "wolf" / "0.png", 1)
    assert said() == "ROOT: train and test hold different classes: test lacks fox; only test has wolf"
    (root / "test").rename(root / "tests")
    expected = "expected: ROOT/train/<class>/ and ROOT/test/<class>/"
    assert said() == f"ROOT/test: no such folder: ROOT holds tests, train (did you mean 'tests'?); {expected}"
    (root / "test").mkdir()
    assert said() == "ROOT/test: no class folders in it; expected: ROOT/test/<class>/ with images"


@pytest.mark.parametrize(
    ("val", "said"),
    [
        (0.99, r"too few images \(train 0, val 20, test 4\); train needs at least 2: hold back a smaller share"),
        (0.0, r"too few images \(train 20, val 0, test 4\); val needs at least 1: .*hold back a larger share"),
        (0.01, r"\(train 20, val 0, test 4\)"),
    ],
)
def test_a_split_without_images_is_refused_before_anything_is_trained(root: Path, val: float, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load("folder", {"root": root, "size": 8, "val": val})
    assert len(load("folder", {"root": root, "size": 8, "val": 0.1}).val.labels) == 2


def test_one_image_per_class_leaves_none_to_choose_with(tmp_path: Path) -> None:
    for part in ("train", "test"):
        image(tmp_path / part / "cat" / "a.png", 1)
        image(tmp_path / part / "dog" / "a.png", 2)
    with pytest.raises(DataError, match=r"folder: too few images \(train 2, val 0, test 2\)"):
        load("folder", {"root": tmp_path, "size": 8})


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    for at in range(20):
        image(tmp_path / "train" / "cat" / f"{at}.png", at)
    image(tmp_path / "test" / "cat" / "a.png", 1)
    with pytest.raises(DataError, match=r"train holds images of one class alone \(cat\).*at least 2 classes"):
        load("folder", {"root": tmp_path, "size": 8})
