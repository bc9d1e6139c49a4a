"""Batch-norm statistics of a low-bit product: from images as training sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qkd.assembly.assemble import assemble
from qkd.assembly.inputs import load_data, spec_of
from qkd.engine.device import Machine
from qkd.engine.reestimation import reestimate_product
from qkd.engine.training_context import Training
from qkd.quantizers import disabled
from tests.support.tiny_data import MOVED
from tests.support.tiny_runs import ALONE, recipe_in


@pytest.mark.parametrize("augment", [True, False])
def test_statistics_are_those_of_images_changed_as_in_training(tmp_path: Path, augment: bool) -> None:
    (tmp_path / "own.py").write_text(MOVED)
    data = {"name": f"{tmp_path / 'own.py'}:moved", "batch": 16}
    recipe = recipe_in(tmp_path, **ALONE, data=data, train={"epochs": 1, "augment": augment})
    images = load_data(recipe)
    assembly = assemble(recipe, spec_of(images))
    training = Training(assembly.ensemble, assembly.plan, images, recipe.train, 16, 3, Machine("cpu").fabric())
    product = assembly.product().eval()

    def mean_behind_stem(changed: bool) -> Tensor:
        seen = list(images.train_batches(16, seed=3, augment=changed))
        with torch.no_grad():
            return torch.stack([product.conv1(b.images).mean((0, 2, 3)) for b in seen[:20]]).mean(0)

    with disabled(product):
        reestimate_product(training)
        found = product.bn1.running_mean
        torch.testing.assert_close(found, mean_behind_stem(augment), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, mean_behind_stem(not augment), rtol=1e-2, atol=1e-2)
