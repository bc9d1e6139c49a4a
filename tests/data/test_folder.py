"""Folders of images: every image is read, and everything wrong with a folder is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qkd.data import Split, load
from qkd.data.folder import folder
from qkd.errors import DataError
from tests.support.refusals import Refused


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


def broken(path: Path, content: bytes = b"no image") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def unreadable(root: Path) -> str:
    """The message about files that cannot be read; the reasons in it are Pillow's words."""
    with pytest.raises(DataError) as error:
        folder(root=root)
    assert error.value.key == "data.unreadable-images"
    return str(error.value).replace(str(root), "ROOT")


def test_unreadable_files_are_named_up_to_five(root: Path) -> None:
    for name in "abcdefg":
        broken(root / f"train/dog/{name}.jpg")
    message = unreadable(root)
    assert message.startswith("7 unreadable image(s): ROOT/train/dog/a.jpg (UnidentifiedImageError: ")
    assert message.endswith("and 2 more")
    assert "f.jpg" not in message


def test_half_a_file_is_unreadable(root: Path) -> None:
    whole = (root / "train/cat/00.png").read_bytes()
    broken(root / "train/cat/half.png", whole[: len(whole) // 2])
    assert "1 unreadable image(s): ROOT/train/cat/half.png (" in unreadable(root)


def test_unreadable_files_of_all_splits_are_named_at_once(root: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(root / "train" / "cat" / "deep.png")
    assert "more than 8 bits per channel (mode I;16), save it with 8" in unreadable(root)
    broken(root / "test/dog/half.png")
    train, test = unreadable(root).split("; 1 unreadable")
    assert train.startswith("1 unreadable image(s): ROOT/train/cat/deep.png (")
    assert test.startswith(" image(s): ROOT/test/dog/half.png (")


def test_a_missing_folder_is_refused(root: Path, tmp_path: Path, refused: Refused) -> None:
    with refused(DataError, "data.missing-folder"):
        folder(root=tmp_path / "nowhere")
    (root / "test").rename(root / "tests")
    with refused(DataError, "data.missing-folder"):
        folder(root=root)


def test_files_outside_of_class_folders_and_empty_classes_are_refused(root: Path, refused: Refused) -> None:
    stray = broken(root / "train/lonely.png")
    with refused(DataError, "data.not-a-class-folder"):
        folder(root=root)
    (root / "train" / "fox").mkdir()
    note = broken(root / "test/notes.txt")
    with refused(DataError, "data.not-a-class-folder"):
        folder(root=root)
    stray.unlink()
    note.unlink()
    with refused(DataError, "data.not-a-class-folder"):
        folder(root=root)


def test_a_split_without_class_folders_is_refused(root: Path, refused: Refused) -> None:
    (root / "test").rename(root / "tests")
    (root / "test").mkdir()
    with refused(DataError, "data.not-a-class-folder"):
        folder(root=root)


def test_splits_of_different_classes_are_refused(root: Path, refused: Refused) -> None:
    image(root / "train" / "fox" / "0.png", 1)
    with refused(DataError, "data.differing-classes"):
        folder(root=root)
    image(root / "test" / "wolf" / "0.png", 1)
    with refused(DataError, "data.differing-classes"):
        folder(root=root)


@pytest.mark.parametrize("val", [0.99, 0.0, 0.01])
def test_a_split_without_images_is_refused_before_anything_is_trained(root: Path, val: float, refused: Refused) -> None:
    with refused(DataError, "data.too-few-images"):
        load("folder", {"root": root, "size": 8, "val": val})
    assert len(load("folder", {"root": root, "size": 8, "val": 0.1}).val.labels) == 2


def test_one_image_per_class_leaves_none_for_validation(tmp_path: Path, refused: Refused) -> None:
    for part in ("train", "test"):
        image(tmp_path / part / "cat" / "a.png", 1)
        image(tmp_path / part / "dog" / "a.png", 2)
    with refused(DataError, "data.too-few-images"):
        load("folder", {"root": tmp_path, "size": 8})


def test_a_single_class_is_refused(tmp_path: Path, refused: Refused) -> None:
    for at in range(20):
        image(tmp_path / "train" / "cat" / f"{at}.png", at)
    image(tmp_path / "test" / "cat" / "a.png", 1)
    with refused(DataError, "data.single-class"):
        load("folder", {"root": tmp_path, "size": 8})
