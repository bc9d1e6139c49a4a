"""Two-bit weights: which levels every family has, that the choice reaches the network, and where it is refused."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from qkd.errors import SchemeError
from qkd.quantizers import FAMILIES, Scheme, bit_stages, calibrate, diagnose, insert, quantizers, set_bit_stage
from qkd.quantizers.weight_grid import WeightLevels
from tests.support.families import weights_have
from tests.support.refusals import Refused
from tests.support.tiny_wirings import Residual, images, with_statistics

MID_RISE, NARROW, FULL = [-3, -1, 1, 3], [-1, 0, 1], [-2, -1, 0, 1]
CHOSEN = {"auto": MID_RISE, "mid_rise": MID_RISE, "narrow": NARROW, "full": FULL}
OWN = {"pact": MID_RISE, "dorefa": MID_RISE, "hwgq": MID_RISE, "ewgs": MID_RISE, "ternary": NARROW}


def codes(core: object, weights: torch.Tensor) -> list[int]:
    value, scale, *_ = core(weights)  # type: ignore[operator]
    return [int(code) for code in (value / scale).round().unique()]


@pytest.mark.parametrize("chosen", get_args(WeightLevels))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(4, 1), ()])
def test_every_family_has_the_levels_that_it_says(family: str, chosen: WeightLevels, shape: tuple[int, ...]) -> None:
    core = FAMILIES[family].weights(2, "mse", shape, chosen)
    weights = torch.randn(4, 500)
    core.fit(weights)
    expected = OWN.get(family, CHOSEN[chosen])
    assert codes(core, weights) == expected
    assert core.num_levels == len(expected) == FAMILIES[family].levels_at_two_bits(chosen)
    assert (FAMILIES[family].fixed_levels is None) == (family not in OWN)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_other_bits_are_not_touched_by_the_choice(family: str, bits: int) -> None:
    if not weights_have(family, bits):
        return
    grids = set()
    for chosen in get_args(WeightLevels):
        core = FAMILIES[family].weights(bits, "mse", (), chosen)
        grids.add((core.low, core.high, core.odd))
    assert len(grids) == 1


@pytest.mark.parametrize("calibration", ["mse", "lsq", "minmax", "percentile", "paper"])
@pytest.mark.parametrize("family", ["lsq", "lsq_plus", "pot"])
def test_every_calibration_gives_a_step_of_the_size_of_the_weights(family: str, calibration: str) -> None:
    core = FAMILIES[family].weights(2, calibration, (3, 1))
    weights = torch.randn(3, 1000) * torch.tensor([[0.01], [1.0], [30.0]])
    core.fit(weights)
    value = core(weights)[0]
    # what clips nothing has a step far too long for Gaussian weights, at any two-bit grid
    limit = 1.0 if calibration in ("minmax", "percentile") else 0.6
    assert ((value - weights).norm(dim=1) / weights.norm(dim=1)).max() < limit
    largest = weights.abs().amax(1)
    if calibration == "minmax" and family != "pot":
        torch.testing.assert_close(value.abs().amax(1), largest)
    if (family, calibration) == ("lsq_plus", "paper"):  # LSQ+ 3.3: four steps are six standard deviations wide
        wanted = (weights.mean(1).abs() + 3 * weights.std(1, correction=0)) / 2
        torch.testing.assert_close(core.step.detach().flatten(), wanted)  # type: ignore[union-attr]


@pytest.mark.parametrize("chosen", CHOSEN)
def test_the_choice_reaches_layers_of_two_bits_and_no_other(chosen: WeightLevels) -> None:
    scheme = Scheme(2, 4, weight_levels=chosen, overrides={"layer1.*": "w4a4"})
    module = insert(with_statistics(Residual), scheme)
    calibrate(module, [images()])
    grids = {name: (core.bits, core.num_levels) for name, core in quantizers(module) if name.endswith(".weight")}
    assert grids["layer2.conv1.weight"] == (2, len(CHOSEN[chosen])) == (2, scheme.levels)
    assert grids["layer1.conv1.weight"] == (4, 15) and grids["stem.0.weight"] == (8, 255)
    assert diagnose(module, [images()]) == []


@pytest.mark.parametrize("chosen", CHOSEN)
def test_bits_that_go_down_end_on_the_chosen_levels_with_the_range_they_had(chosen: WeightLevels) -> None:
    module = insert(with_statistics(Residual), Scheme(2, 2, weight_levels=chosen, progressive=(8, 4, 2)))
    core = dict(quantizers(module))["layer2.conv1.weight"]
    set_bit_stage(module, 0, keep_range=False)
    assert (core.low, core.high, core.num_levels, float(core.bit_width)) == (-127, 127, 255, 8)
    calibrate(module, [images()])
    weights = module.get_submodule("layer2.conv1").weight.detach()  # type: ignore[union-attr]
    before = (core.high - core.low) * core(weights)[1]
    for stage in range(1, bit_stages(module)):
        set_bit_stage(module, stage, keep_range=True)
        torch.testing.assert_close((core.high - core.low) * core(weights)[1], before)
    assert set(codes(core, weights)) <= set(CHOSEN[chosen]) and core.num_levels == len(CHOSEN[chosen])
    fresh = dict(quantizers(insert(with_statistics(Residual), Scheme(2, 2, weight_levels=chosen))))
    fresh["layer2.conv1.weight"].load_state_dict(core.state_dict())
    assert torch.equal(fresh["layer2.conv1.weight"](weights)[0], core(weights)[0])


@pytest.mark.parametrize("family", OWN)
def test_families_with_a_grid_of_their_own_leave_no_choice(family: str, refused: Refused) -> None:
    with refused(SchemeError, "scheme.fixed-levels"):
        Scheme(2, 2, family=family, weight_levels="narrow")
    with refused(SchemeError, "scheme.fixed-levels"):
        Scheme(2, 2, weight_family=family, weight_levels="full")


def test_words_that_are_no_levels_are_refused(refused: Refused) -> None:
    with refused(SchemeError, "scheme.unknown-levels"):
        Scheme(2, 2, weight_levels="midrise")  # type: ignore[arg-type]


def test_a_title_says_how_many_levels_two_bits_are() -> None:
    assert Scheme.parse("w2a4").title == "w2a4 (4 levels)"
    assert Scheme.parse("w2a4", weight_levels="narrow").title == "w2a4 (3 levels)"
    assert Scheme.parse("w2a4", weight_family="ternary").title == "w2a4 (3 levels)"
    assert Scheme.parse("w4a2").title == "w4a2"
    assert (
        not Scheme.parse("w4a2").has_levels_to_choose and not Scheme.parse("w2a2", family="ewgs").has_levels_to_choose
    )
    assert Scheme.parse("w4a2", overrides={"fc": "w2a2"}).has_levels_to_choose
