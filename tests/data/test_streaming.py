"""Images in files: the same batches as from memory, resumable and sharded; random resized crops; the decode cache."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qkd import recipe as recipes
from qkd.data import Batch, Data, decode_cache
from qkd.data.decode import random_crop, read_image
from qkd.data.folder import MEMORY_LIMIT, folder
from qkd.data.streaming import ImageFiles, default_workers
from qkd.engine.device import Machine
from qkd.errors import DataError
from qkd.pipeline.export import export_run
from qkd.pipeline.train import train_recipe
from qkd.recipe.yaml_text import to_yaml
from qkd.storage.run import Run
from tests.support.refusals import Refused
from tests.support.tiny_data import noise, same
from tests.support.tiny_runs import TINY, losses

ALONE: dict[str, Any] = {
    "method": {"name": "qat"},
    "teachers": {},
    "match": [],
    "student": {**TINY["student"], "start_from": "scratch"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, twelve images each to train on and three to test with."""
    for at in range(15):
        for number, name in enumerate(("cat", "dog")):
            noise(tmp_path / "images" / ("train" if at < 12 else "test") / name / f"{at:02}.png", 100 * number + at)
    return tmp_path / "images"


def streamed(root: Path, workers: int = 2, **options: Any) -> Data:
    found = folder(root=root, **{"size": 16, "memory": False, **options})
    return dataclasses.replace(found, workers=workers)


def training(data: Data, **more: Any) -> list[Batch]:
    return list(data.train_batches(6, **{"seed": 4, "augment": True, **more}))


def test_from_files_come_the_batches_that_come_from_memory(root: Path) -> None:
    files, memory = streamed(root), folder(root=root, size=16, memory=True)
    assert isinstance(files.train.images, ImageFiles)
    assert isinstance(memory.train.images, torch.Tensor)
    assert files.shape == memory.shape == (3, 16, 16)
    assert (files.mean, files.std) == (memory.mean, memory.std)
    assert same(training(files), training(memory))
    assert same(training(files, num_views=2), training(memory, num_views=2))
    for split in ("train", "val", "test"):
        assert same(list(files.batches(split, 4)), list(memory.batches(split, 4)))
    assert torch.equal(files.normalize(files.test.images), memory.normalize(memory.test.images))
    assert torch.equal(files.with_test_in_memory().test.images, memory.test.images)
    assert memory.with_test_in_memory() is memory
    assert torch.equal(files.test.images[torch.tensor([2, 0])], memory.test.images[torch.tensor([2, 0])])


def test_of_many_files_a_part_is_decoded_into_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkd.data.batches.TEST_IMAGES", 3)
    data = streamed(root)
    small = data.with_test_in_memory()
    assert small.test.labels.tolist() == [0, 0, 1]
    assert torch.equal(small.test.images, data.test.images[torch.tensor([0, 2, 5])])


def test_how_many_workers_there_are_changes_nothing(root: Path) -> None:
    state = torch.get_rng_state()
    alone, pair = (training(streamed(root, workers, crop="resized")) for workers in (0, 2))
    assert same(alone, pair)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1 <= default_workers() <= 8


@pytest.mark.parametrize("crop", ["shift", "resized"])
def test_batches_from_files_are_skipped_and_shared_like_others(root: Path, crop: str) -> None:
    data = streamed(root, 0, crop=crop)
    whole = training(data)
    assert same(training(data, skip=2), whole[2:])
    parts = [training(data, shard=(rank, 2)) for rank in (0, 1)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(one.images, torch.cat([first.images, second.images]))
    assert not same(training(data, seed=5), whole)


def test_resized_parts_are_drawn_anew_each_time_and_for_each_view(root: Path) -> None:
    data = streamed(root, 0, crop="resized")
    assert data.augment == "resized+flip"
    one, plain = training(data, num_views=2), training(data, augment=False)
    assert all(not torch.equal(batch.images, batch.others[0]) for batch in one)
    assert same([batch._replace(others=()) for batch in one], training(data))
    path = data.train.images.paths[plain[0].ids[0]]
    assert torch.equal(plain[0].images[0], data.normalize(torch.from_numpy(read_image(path, 16, "resized").copy())))
    assert not one[0].images.isnan().any()


def test_a_part_is_where_its_numbers_say(tmp_path: Path) -> None:
    columns = np.arange(64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    Image.fromarray(columns).save(tmp_path / "ramp.png")
    whole = random_crop(
        tmp_path / "ramp.png", 64, (1.0, 0.5, 0.3, 0.3, 0.9)
    )  # all of the area, square: the image itself
    assert np.array_equal(whole, columns.transpose(2, 0, 1))
    assert np.array_equal(random_crop(tmp_path / "ramp.png", 64, (1.0, 0.5, 0.3, 0.3, 0.1)), whole[:, :, ::-1])
    left, right = (random_crop(tmp_path / "ramp.png", 16, (0.2, 0.5, at, 0.0, 0.9)) for at in (0.0, 1.0))
    assert left.min() < 3 and 28 < left.max() < 34  # 0.08 + 0.2 x 0.92 of the area: 33 columns of 64
    assert 29 < right.min() < 35 and right.max() > 60
    wide, high = (random_crop(tmp_path / "ramp.png", 16, (0.0, ratio, 0.0, 0.0, 0.9)) for ratio in (1.0, 0.0))
    assert int(wide.max()) > int(high.max())


def test_auto_keeps_in_memory_what_fits(root: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    assert isinstance(folder(root=root, size=16).train.images, torch.Tensor)
    assert isinstance(folder(root=root, size=16, crop="resized").train.images, ImageFiles)
    monkeypatch.setattr(sys.modules["qkd.data.folder"], "MEMORY_LIMIT", 30 * 3 * 16 * 16 - 1)
    assert isinstance(folder(root=root, size=16).train.images, ImageFiles)
    assert MEMORY_LIMIT == 4 * 2**30
    with refused(DataError, "data.resized-in-memory"):
        folder(root=root, memory=True, crop="resized")


def test_a_file_that_breaks_on_the_way_is_named(root: Path) -> None:
    data = streamed(root)
    Path(data.train.images.paths[3]).write_text("no image")
    with pytest.raises(DataError, match=r"^1 unreadable image\(s\): .*\.png \(UnidentifiedImageError") as error:
        training(data)  # the rest of the message is Pillow's
    assert error.value.key == "data.unreadable-images"


def test_the_fingerprint_follows_the_files(root: Path) -> None:
    before = streamed(root).fingerprint()
    assert streamed(root).fingerprint() == before
    assert streamed(root, size=8).fingerprint() != before
    noise(root / "train" / "cat" / "00.png", 7, (21, 24))
    assert streamed(root).fingerprint() != before


def test_the_fingerprint_of_the_test_set_is_that_of_a_copy_too(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy))  # with other times
    assert streamed(copy).test_fingerprint() == streamed(root).test_fingerprint() != streamed(root).fingerprint()
    one = Path(next(iter(streamed(copy).test.images.paths)))  # type: ignore[union-attr]
    one.rename(one.with_name("other.png"))
    assert streamed(copy).test_fingerprint() != streamed(root).test_fingerprint()


def test_a_run_on_files_is_the_run_on_memory(root: Path, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Run:
        made = Run.create(tmp_path / name)
        alone = {**ALONE, "train": {"epochs": 1}}
        data = {"name": "folder", "root": str(root), "size": 16, "batch": 6, **options}
        (tmp_path / "r.yaml").write_text(to_yaml({**TINY, **alone, "data": data}))
        train_recipe(recipes.load(tmp_path / "r.yaml"), made, Machine("cpu", threads=1, workers=1))
        return made

    files, memory = run("files", memory=False), run("memory")
    assert losses(files) == losses(memory)
    assert export_run(files).equal_fraction == 1.0  # type: ignore[union-attr]
    a, b = files.load_product(), memory.load_product()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_was_decoded_once_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
    monkeypatch.setattr(decode_cache, "MIN_BYTES", 1)
    counted: list[int] = []
    real = decode_cache.decode_images
    monkeypatch.setattr(
        decode_cache, "decode_images", lambda paths, *rest: counted.append(len(paths)) or real(paths, *rest)
    )
    first, again = folder(root=root, size=16), folder(root=root, size=16)
    assert counted == [24, 6]
    assert first.fingerprint() == again.fingerprint()
    assert same(training(first), training(again))
    [store] = {
        path for path in (root.parent / "cache/qkd/decoded").glob("*.npy") if path.stat().st_size > 24 * 3 * 16 * 16
    }
    content = bytearray(store.read_bytes())
    content[-1] ^= 1
    store.write_bytes(content)
    assert folder(root=root, size=16).fingerprint() == first.fingerprint()
    assert counted == [24, 6, 24]  # damaged: decoded again, and kept again
    noise(root / "test" / "dog" / "14.png", 1, (22, 22))
    folder(root=root, size=16)
    folder(root=root, size=8)
    assert counted == [24, 6, 24, 6, 24, 6]


def test_where_nothing_can_be_kept_it_goes_on_without(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
    monkeypatch.setattr(decode_cache, "MIN_BYTES", 1)
    assert len(folder(root=root, size=16).train.labels) == 22


def test_a_list_names_the_images_to_train_on(root: Path, refused: Refused) -> None:
    chosen = [f"{name}/{at:02}.png" for name in ("cat", "dog") for at in range(0, 12, 2)]
    text = root.parent / "chosen.txt"
    text.write_text("# half of them\n" + "\n".join(chosen) + "  # the last\n\n")
    data = folder(root=root, size=16, only=text, val=0.0, memory=False)
    assert [str(Path(path).relative_to(root / "train")) for path in data.train.images.paths] == chosen
    assert len(data.test.labels) == 6
    for wrong, key in (
        ("cat/99.png", "data.unknown-name-in-list"),
        ("cat/00.png\ncat/00.png\ndog/01.png", "data.name-listed-twice"),
        ("cat/00.png", "data.class-missing-in-list"),
    ):
        text.write_text(wrong)
        with refused(DataError, key):
            folder(root=root, only=text)
    with refused(DataError, "data.unreadable-list"):
        folder(root=root, only=root / "nothing.txt")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_workers_do_not_notice_a_signal(root: Path, sent: signal.Signals) -> None:
    """Terminals and schedulers send it to every process; only the training process decides when to stop."""
    data, before = streamed(root), set(multiprocessing.active_children())
    batches = data.train_batches(2, seed=0)
    seen = [next(batches), next(batches)]  # one of each worker: both have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, sent)
    assert len([*seen, *batches]) == data.num_train_batches(2)


def test_ctrl_c_reaches_the_workers_and_breaks_nothing(root: Path, tmp_path: Path) -> None:
    """A terminal sends it to every process; the training process saves its step, the workers ignore the signal."""
    recipe = {**ALONE, "data": {"name": "folder", "root": str(root), "size": 16, "batch": 4, "memory": False}}
    recipe["train"] = {"epochs": 300, "rate": 0.01}
    (tmp_path / "tiny.yaml").write_text(to_yaml({**TINY, **recipe}))
    words = ["train", "tiny.yaml", "--threads", "1", "--workers", "2", "--out", "run"]
    line = [sys.executable, "-m", "qkd", *words]
    trained = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert trained.stderr is not None
    try:
        for said in trained.stderr:
            if said.startswith("train ") and " 2/300 " in said:
                break
        os.killpg(trained.pid, signal.SIGINT)
        rest = trained.communicate(timeout=120)[1]
    finally:
        trained.kill()
    assert trained.returncode == 130, rest
    assert "is kept; go on with --out run --resume" in rest
    assert "Traceback" not in rest
    assert Run(tmp_path / "run").checkpoints.load("last") is not None
