"""Views: a method can give each network an augmentation of its own, which changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qkd.assembly.ensemble import Ensemble
from qkd.assembly.rehearsal import rehearse
from qkd.data import Batch
from qkd.distill.exchange import Fuse
from qkd.distill.plan import Phase, Plan, Step
from qkd.distill.taps import Tap
from qkd.distill.terms import label
from qkd.engine.device import Machine
from qkd.engine.step import _pieces
from qkd.errors import PlanError
from qkd.pipeline.train import train_recipe
from qkd.storage.run import Run
from tests.support.ensembles import FACTS, batch, company, staged
from tests.support.refusals import Refused
from tests.support.tiny_data import MOVED, ramp, same
from tests.support.tiny_runs import losses, recipe_in


def drawn(num_views: int, **more: Any) -> list[Batch]:
    return list(ramp(32).train_batches(8, seed=3, augment=True, num_views=num_views, **more))


def test_further_views_are_other_augmentations_of_the_same_images() -> None:
    data, one, three = ramp(32), drawn(1), drawn(3)
    for plain, more in zip(one, three, strict=True):
        assert torch.equal(plain.images, more.images)
        assert torch.equal(plain.ids, more.ids)
        assert len(more.views) == 3
        views = [more.images, *more.others]
        assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])
        levels = [view.std((1, 2, 3)) for view in views]  # of one image, moved and mirrored: about the same
        assert torch.allclose(levels[0], levels[1], atol=0.15)
    assert same(three, drawn(3))
    assert same(three[2:], drawn(3, skip=2))
    assert all(not b.others for b in data.train_batches(8, seed=3, num_views=3))
    assert all(not b.others for b in data.batches("val", 8))


def test_ranks_see_the_views_one_process_sees() -> None:
    whole, parts = drawn(2), [drawn(2, shard=(rank, 2)) for rank in (0, 1)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(one.images, torch.cat([first.images, second.images]))
        assert torch.equal(one.others[0], torch.cat([first.others[0], second.others[0]]))


def test_pieces_of_a_batch_keep_their_views() -> None:
    whole = drawn(2)[0]
    pieces = [piece for piece, _ in _pieces(whole, 2)]
    assert torch.equal(torch.cat([piece.others[0] for piece in pieces]), whole.others[0])


def shown(plan: Plan, *parts: str) -> Ensemble:
    return Ensemble({name: staged(seed) for seed, name in enumerate(parts)}, plan).eval()


def test_each_network_gets_the_view_of_the_plan() -> None:
    plan = Plan((Phase("train", (Step(["student"], [label("student")]),)),), views={"a": 1})
    parts = shown(plan, "student", "a", "b")
    first, second = batch().images, batch().images.flip(3)
    both, one, other = (parts(images, ("student", "a", "b")) for images in ((first, second), first, second))
    assert plan.num_views == 2
    for part, expected in (("student", one), ("a", other), ("b", one)):
        assert torch.equal(both[Tap(part)], expected[Tap(part)])


def test_kdcl_gives_each_network_an_own_view_by_default() -> None:
    assert company("kdcl", "a", "b")[1].views == {"student": 0, "a": 1, "b": 2}
    assert company("kdcl", "a", "b", views="same")[1].num_views == 1


def test_views_that_do_not_fit_the_plan_are_refused(refused: Refused) -> None:
    phases = (Phase("train", (Step(["student"], [label("student")]),)),)
    plan = Plan(phases, views={"studnet": 1})
    with refused(PlanError, "plan.views-of-no-network"):
        rehearse(shown(plan, "student"), plan, {}, FACTS)
    plan = Plan(phases, exchange=Fuse(("a", "b"), ()), views={"b": 1})
    with refused(PlanError, "plan.members-see-different-views"):
        rehearse(shown(plan, "student", "a", "b"), plan, {}, FACTS)


def test_training_on_own_views_resumes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MOVED)
    there = {"data": {"name": f"{tmp_path / 'own.py'}:moved", "batch": 16}, "match": []}
    own, same = (recipe_in(tmp_path, **there, method={"name": "kdcl", "views": views}) for views in ("own", "same"))
    whole, other, short = (Run.create(tmp_path / name) for name in ("own", "same", "short"))
    one = Machine("cpu", threads=1)
    train_recipe(own, whole, one)
    train_recipe(same, other, one)
    assert losses(whole)[0] == losses(other)[0]
    assert losses(whole)[1:] != losses(other)[1:]
    train_recipe(own, short, one, max_steps=6)
    train_recipe(own, short, one, resume=True)
    assert losses(short) == losses(whole)
    a, b = whole.load_product(), short.load_product()
    assert all(torch.equal(a[name], b[name]) for name in a)
