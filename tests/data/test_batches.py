"""Data: what a batch holds, what decides its order and augmentation, and the built-in data sets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from qkd.data import DATASETS, Split
from qkd.data.augment import crop_and_flip
from qkd.data.batches import channel_statistics
from qkd.data.digits import digits
from qkd.data.fake import fake
from qkd.data.split import stratified_split
from tests.support.tiny_data import ramp, same


def test_a_batch_holds_normalised_images_in_channels_last() -> None:
    data = ramp()
    [batch] = data.batches("test", 10)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == batch.ids.dtype == torch.int64
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(batch.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(batch.images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_normalising_is_one_scale_and_one_shift_of_the_uint8_values() -> None:
    data = ramp()
    mean, std = (torch.tensor(each)[:, None, None] for each in (data.mean, data.std))
    expected = (data.test.images.double() / 255 - mean) / std
    assert torch.allclose(data.normalize(data.test.images).double(), expected, atol=1e-5)
    scale, shift = data.affine()
    assert torch.equal(data.normalize(data.test.images), data.test.images.float() * scale + shift)


def test_evaluation_sees_every_image_once_in_order() -> None:
    data = ramp(count=11)
    batches = list(data.batches("test", 4))
    assert [len(b.ids) for b in batches] == [4, 4, 3]
    assert torch.cat([b.ids for b in batches]).tolist() == list(range(11))
    assert torch.equal(torch.cat([b.images for b in batches]), data.normalize(data.test.images))


@pytest.mark.parametrize(("count", "sizes"), [(11, [4, 4, 3]), (9, [4, 4]), (8, [4, 4])])
def test_training_leaves_out_no_more_than_a_final_batch_of_size_1(count: int, sizes: list[int]) -> None:
    batches = list(ramp(count).train_batches(4, seed=0))
    assert [len(b.ids) for b in batches] == sizes
    assert len({i for b in batches for i in b.ids.tolist()}) == sum(sizes)


def test_a_batch_size_of_one_is_kept() -> None:
    assert len(list(ramp(3).train_batches(1, seed=0))) == 3


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_number_of_batches_is_known_before_they_are_made(ranks: int) -> None:
    for count in range(2, 14):
        data = ramp(count)
        for size in range(1, 8):
            made = [len(list(data.train_batches(size, seed=0, shard=(r, ranks)))) for r in range(ranks)]
            assert made == [data.num_train_batches(size, ranks)] * ranks, (count, size)


def test_order_and_augmentation_depend_on_the_seed_alone() -> None:
    data = ramp(count=32)
    first = list(data.train_batches(8, seed=5, augment=True))
    torch.randn(100)  # random numbers drawn elsewhere change nothing here, and the other way round
    state = torch.get_rng_state()
    again = list(data.train_batches(8, seed=5, augment=True))
    assert torch.equal(torch.get_rng_state(), state)
    other = list(data.train_batches(8, seed=6, augment=True))
    plain = list(data.train_batches(8, seed=5))
    assert same(first, again)
    assert not same(first, other)
    assert [b.ids.tolist() for b in first] == [b.ids.tolist() for b in plain]
    assert not torch.equal(first[0].images, plain[0].images)


def test_an_image_is_augmented_alike_whatever_batch_it_is_in() -> None:
    data = ramp(count=32)
    small, large = (torch.cat([b.images for b in data.train_batches(n, seed=1, augment=True)]) for n in (4, 16))
    assert torch.equal(small, large)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_each_batch_without_overlap(ranks: int) -> None:
    data = ramp(count=20)
    parts = [list(data.train_batches(8, seed=0, shard=(rank, ranks))) for rank in range(ranks)]
    assert len({tuple(len(b.ids) for b in part) for part in parts}) == 1
    seen = [i for part in parts for b in part for i in b.ids.tolist()]
    assert len(seen) == len(set(seen))
    tested = [i for rank in range(ranks) for b in data.batches("test", 8, shard=(rank, ranks)) for i in b.ids.tolist()]
    assert sorted(tested) == list(range(20))


def test_crops_and_flips_are_those_asked_for() -> None:
    images = torch.arange(2 * 1 * 4 * 4, dtype=torch.uint8).reshape(2, 1, 4, 4) + 1
    moves = torch.tensor([[1, 1, 0], [0, 2, 1]])
    cut = crop_and_flip(images, moves, padding=1)
    assert torch.equal(cut[0], images[0])  # moved by the padding: where it was
    expected = torch.zeros(4, 4, dtype=torch.uint8)
    expected[1:, :3] = images[1, 0, :3, 1:]  # one down, one to the left, the gap black
    assert torch.equal(cut[1, 0], expected.flip(1))


def test_digits_are_never_mirrored_and_their_split_never_changes() -> None:
    data = digits()
    assert data.shape == (1, 16, 16)
    assert data.labels == tuple("0123456789")
    assert [len(s.labels) for s in (data.train, data.val, data.test)] == [1078, 360, 359]
    assert data.augment == "crop"
    assert digits().fingerprint() == data.fingerprint()
    assert digits(seed=1).fingerprint() != data.fingerprint()
    assert digits(size=8, channels=3).shape == (3, 8, 8)
    for split in (data.train, data.val, data.test):
        assert torch.bincount(split.labels).min() > 0.9 * len(split.labels) / 10


def test_a_stratified_split_loses_nothing_and_keeps_the_proportions() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    parts = stratified_split(labels, (0.6, 0.2, 0.2), seed=3)
    assert sorted(torch.cat(parts).tolist()) == list(range(61))
    assert [torch.bincount(labels[p], minlength=3).tolist()[:2] for p in parts] == [[30, 6], [10, 2], [10, 2]]


def test_channel_statistics_agree_with_torch() -> None:
    images = ramp().test.images
    mean, std = channel_statistics(images)
    assert torch.allclose(torch.tensor(mean), (images.double() / 255).mean((0, 2, 3)).float())
    assert torch.allclose(torch.tensor(std), (images.double() / 255).std((0, 2, 3), correction=0).float())
    assert channel_statistics(torch.zeros(2, 1, 2, 2, dtype=torch.uint8))[1] == (pytest.approx(1 / 255),)


def test_fake_images_can_be_learned() -> None:
    data = fake(size=8, classes=4, train=128, test=64)
    assert data.fingerprint() == fake(size=8, classes=4, train=128, test=64).fingerprint()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for epoch in range(5):
        for batch in data.train_batches(32, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
            optimizer.step()
    [test] = data.batches("test", 64)
    assert (network(test.images).argmax(1) == test.labels).float().mean() > 0.9


@pytest.mark.parametrize("name", DATASETS)
def test_options_are_keywords_with_types(name: str) -> None:
    from qkd.options import options_from

    options = options_from(DATASETS[name])
    assert options.parameters
    assert all(p.kind is p.KEYWORD_ONLY and p.annotation is not p.empty for p in options.parameters.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_the_same_on_a_gpu() -> None:
    data = ramp(count=32)
    here = list(data.train_batches(8, seed=5, augment=True))
    there = list(data.train_batches(8, seed=5, augment=True, device="cuda"))
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.images.is_cuda
        assert torch.allclose(ours.images, theirs.images.cpu(), atol=1e-6)
        assert torch.equal(ours.labels, theirs.labels.cpu())
        assert torch.equal(ours.ids, theirs.ids.cpu())


def test_the_fingerprint_of_a_test_set_is_that_of_its_images_and_labels() -> None:
    data = ramp()
    same = replace(data, train=data.train.subset(torch.arange(4)), mean=(0.1, 0.2, 0.3))
    assert same.test_fingerprint() == data.test_fingerprint()
    images, labels = data.test
    for changed in (Split(images.flip(0), labels), Split(images, labels.flip(0)), Split(images[:-1], labels[:-1])):
        assert replace(data, test=changed).test_fingerprint() != data.test_fingerprint()
