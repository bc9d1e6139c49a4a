"""Per-layer bits, families and what stays float, from a recipe to the quantizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from qkd.assembly.assemble import assemble
from qkd.assembly.export_preview import export_preview, grouped_by_reason
from qkd.assembly.product import scheme_of_heads, scheme_of_network
from qkd.errors import NetworkError, RecipeError, SchemeError
from qkd.networks.summary import layer_table
from qkd.quantizers import Scheme, quantizers
from qkd.quantizers.pact import ClippedQuant
from qkd.quantizers.ternary import BinaryQuant
from qkd.recipe.files import load
from qkd.tasks.spec import DataSpec
from tests.support.recipe_texts import changed
from tests.support.refusals import Refused

FACTS = DataSpec((3, 16, 16), 5)


def bits(text: str, tmp_path: Path) -> dict[str, int]:
    path = tmp_path / "r.yaml"
    path.write_text(changed(student=f"{{build: resnet8, quantize: {text}}}"))
    assembly = assemble(load(path), FACTS)
    return {name: core.bits for name, core in quantizers(assembly.product())}


def test_overrides_of_a_recipe_reach_the_layers(tmp_path: Path) -> None:
    found = bits('{weights: 4, activations: 4, overrides: {"layer3.*": w2a4, "layer1.0.conv2": w8a3}}', tmp_path)
    assert found["layer3.0.conv1.weight"] == found["layer3.0.conv2.weight"] == 2
    assert found["layer2.0.conv1.weight"] == 4
    assert (found["layer1.0.conv2.weight"], found["layer1.0.relu1"]) == (8, 3)


def test_patterns_that_match_nothing_and_wrong_bits_are_told_before_training(tmp_path: Path, refused: Refused) -> None:
    with refused(RecipeError, "recipe"):
        bits('{weights: 4, activations: 4, overrides: {"layr3.*": w2a4}}', tmp_path)
    with refused(RecipeError, "recipe"):
        bits('{weights: 4, activations: 4, overrides: {"layer3.*": w0a4}}', tmp_path)
    with refused(RecipeError, "recipe"):
        bits("{weights: 4, activations: 4, family: ternary}", tmp_path)
    with refused(RecipeError, "recipe"):
        bits("{weights: 4, activations: 4, family: pakt}", tmp_path)


ATSC = {"method": "{name: atsc, reduce: 1}", "match": "[layer3]"}


def heads_bits(overrides: str, tmp_path: Path, teacher: str = "w8a8") -> dict[str, int]:
    path = tmp_path / "r.yaml"
    student = f"{{build: resnet8, width: 8, quantize: {{weights: 2, activations: 2, overrides: {{{overrides}}}}}}}"
    path.write_text(
        changed(**ATSC, student=student, teachers=f"{{eight: {{build: resnet8, width: 8, quantize: {teacher}}}}}")
    )
    return {name: core.bits for name, core in quantizers(assemble(load(path), FACTS).product())}


def test_overrides_reach_the_heads_of_the_product_by_the_names_it_gives_them(tmp_path: Path) -> None:
    plain = heads_bits("", tmp_path)
    projector = [name for name in plain if name.startswith("heads.") and name.endswith(".weight")]
    assert len(projector) == 3 and {plain[name] for name in projector} == {2}
    found = heads_bits('"heads.as_eight.*": w4a3, "heads.as_eight.body.body.3": w8a5', tmp_path)
    assert [found[name] for name in projector] == [4, 8, 4]
    assert found["heads.as_eight.body.body.2"] == 5  # what feeds the layer of 5-bit inputs
    assert all(name.startswith("heads.") for name in plain if plain[name] != found[name])


def test_a_classifier_borrowed_from_a_float_teacher_takes_overrides_too(tmp_path: Path) -> None:
    assert heads_bits("", tmp_path, "off")["heads.as_eight.borrowed.fc.weight"] == 8
    assert heads_bits('"heads.*.fc": w4a8', tmp_path, "off")["heads.as_eight.borrowed.fc.weight"] == 4


def test_overrides_that_match_no_layer_of_a_head_are_told_at_their_place(tmp_path: Path, refused: Refused) -> None:
    with refused(SchemeError, "scheme.no-such-head-layer"):
        heads_bits('"heads.as_eigt.*": w4a4', tmp_path)
    with refused(SchemeError, "scheme.no-such-head-layer"):
        bits('{weights: 4, activations: 4, overrides: {"heads.x": w2a4}}', tmp_path)
    with refused(RecipeError, "recipe"):
        heads_bits("", tmp_path, '{weights: 4, activations: 4, overrides: {"heads.x": w2a4}}')


def test_a_network_with_heads_of_its_own_keeps_its_overrides() -> None:
    network = nn.ModuleDict({"heads": nn.ModuleDict({"head": nn.Linear(4, 2)})})
    scheme = Scheme(2, 2, overrides={"heads.head": "w4a4", "heads.as_eight.*": "w8a8", "fc": "w3a3"})
    assert scheme_of_network(scheme, network).overrides == {"heads.head": "w4a4", "fc": "w3a3"}
    assert scheme_of_heads(scheme, network).overrides == {"heads.as_eight.*": "w8a8"}


def test_families_of_a_recipe_reach_the_layers_and_nothing_stays_float(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    scheme = "{weights: 1, activations: 2, weight_family: binary, activation_family: pact}"
    path.write_text(changed(student=f"{{build: resnet8, quantize: {scheme}}}"))
    recipe = load(path)
    assembly = assemble(recipe, FACTS)
    cores = dict(quantizers(assembly.product()))
    assert isinstance(cores["layer2.0.conv1.weight"], BinaryQuant)
    assert isinstance(cores["layer2.0.relu1"], ClippedQuant)
    assert export_preview(recipe, assembly) == []
    assert not any(core.is_calibrated() for core in cores.values())


def test_what_stays_float_is_said_once_for_each_reason() -> None:
    found = [(f"layer{i}", "onnxruntime has no integer SiLU") for i in range(7)]
    found += [("fc", "its result is read by a, b and not by one quantizer alone")]
    first, second = grouped_by_reason(found)
    assert first.startswith("stays float: layer0, layer1") and "and 2 more" in first and "SiLU" in first
    assert "fc: its result is read" in second


def test_the_table_of_layers_counts_multiplications() -> None:
    text = layer_table("resnet8", size=16, channels=3, classes=10)
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["layer2.0.conv1"][2:] == ["32x8x8", f"{16 * 32 * 9:,}", f"{16 * 32 * 9 * 64:,}", "yes"]
    assert lines["fc"][4] == "640"
    counted = [int(words[4].replace(",", "")) for words in lines.values() if words[1] in ("Conv2d", "Linear")]
    assert lines["all"][2] == f"{sum(counted):,}"
    with pytest.raises(NetworkError):
        layer_table("resnet9", size=16, channels=3, classes=10)
