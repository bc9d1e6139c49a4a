"""How one network is quantized: bits of weights and activations, family, and exceptions for single layers.

Importable without Brevitas, so that recipes are checked and listed quickly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from qkd.errors import SchemeError, nearest
from qkd.quantizers.families import FAMILIES, Family
from qkd.quantizers.progressive import schedule_mistake
from qkd.quantizers.scale_search import Calibration
from qkd.quantizers.weight_grid import CHOSEN_AT, WeightLevels

Bits = Annotated[int, "bits, 1 to 8"]
if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[tuple(FAMILIES)]
Delta = Literal["fixed", "hessian"]

SHORTHAND = re.compile(r"w([1-8])a([1-8])")


@dataclass(frozen=True)
class Scheme:
    """Bits and family of a network's quantizers. Raises one SchemeError for all its mistakes, with a line for each.

    Args:
        weights: bits of conv and linear weights.
        activations: bits of every tensor that feeds a conv or linear layer.
        family: how numbers are rounded and what is learned, a name of `FAMILIES` (``qkd ls schemes`` lists them).
        weight_family, activation_family: another family for one of the two.
        weight_levels: levels of 2-bit weights of the families lsq, lsq_plus, pot and binary: mid_rise (-3, -1, 1, 3 times half
            the step, no zero), narrow (-1, 0, 1: three levels), full (-2, -1, 0, 1, as in the LSQ paper), or auto: mid_rise.
            Weights of more bits have a symmetric grid with a zero; the other families have grids of their own.
        first: bits of the network's input and of the first layer's weights.
        last: bits of the last layer's input and weights.
        sums: bits of tensors that meet in additions, concatenations and pools and feed no layer directly.
        per_channel: one weight scale per output channel, else one per layer.
        calibration: how scales are chosen from data: mse, lsq, minmax, percentile, or paper (that of the family's paper).
        delta: of family ewgs, how strongly a gradient is scaled: fixed (1e-3), or hessian: from the loss's Hessian, for each
            quantizer, before training and every ten epochs.
        exact: batch norm goes into the weights before they are rounded, and biases are rounded too, so that the logits in
            PyTorch are those of the exported file to the last bit; needs family pot, and a lower learning rate, since no
            batch norm steadies the training.
        progressive: bits at which training begins and goes down, an equal share of its epochs each, the last those of the
            scheme (the fewer of weights and activations); e.g. (8, 4, 2), or (8, 4, 2, 2) to stay longer at the end.
        overrides: layer name pattern (``layer1.*``) -> shorthand for the weights and the input of the layers it
            matches; later ones win. Checked against the layers of the network by ``insert``. Those of a student may name layers
            of the heads that its product has, as its file names them (``heads.as_teacher.*``, the projector of ATSC).
    """

    weights: Bits
    activations: Bits
    _: KW_ONLY
    family: FamilyName = "lsq"
    weight_family: FamilyName | None = None
    activation_family: FamilyName | None = None
    weight_levels: WeightLevels = "auto"
    first: Bits = 8
    last: Bits = 8
    sums: Bits = 8
    per_channel: bool = True
    calibration: Calibration = "mse"
    delta: Delta = "fixed"
    exact: bool = False
    progressive: tuple[int, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        mistakes = [*_wrong_words(self), *_wrong_bits(self)] or [*_wrong_for_families(self)]
        mistakes += _wrong_switches(self)
        if mistakes:
            key = mistakes[0].key if len(mistakes) == 1 else "scheme.several-mistakes"
            raise SchemeError("\n".join(map(str, mistakes)), key=key)

    @property
    def family_of_weights(self) -> FamilyName:
        return self.weight_family or self.family

    @property
    def family_of_activations(self) -> FamilyName:
        return self.activation_family or self.family

    @classmethod
    def parse(cls, text: str, **options: Any) -> Scheme:
        """The scheme of a shorthand such as ``w4a8``; options are those of the class. Raises SchemeError."""
        weights, activations = bits_of(text)
        return cls(weights, activations, **options)

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"

    @property
    def has_levels_to_choose(self) -> bool:
        """Whether ``weight_levels`` changes anything: weights of 2 bits, of a family that leaves the choice."""
        bits = [self.weights, self.first, self.last, *(bits_of(text)[0] for text in self.overrides.values())]
        return CHOSEN_AT in bits and FAMILIES[self.family_of_weights].fixed_levels is None

    @property
    def levels(self) -> int | None:
        """How many levels the weights of inner layers have, where bits alone do not say it: at 2 bits. Else None."""
        chosen = FAMILIES[self.family_of_weights].levels_at_two_bits(self.weight_levels)
        return chosen if self.weights == CHOSEN_AT else None

    @property
    def title(self) -> str:
        """The shorthand, with the levels of 2-bit weights: ``w2a4 (4 levels)``."""
        return titled(str(self), self.levels)


def titled(shorthand: str, levels: int | None) -> str:
    """A shorthand with the number of levels of the weights, where that is given."""
    return shorthand if levels is None else f"{shorthand} ({levels} levels)"


def bits_of(shorthand: str) -> tuple[int, int]:
    """Bits of weights and of activations in a shorthand such as ``w4a8``. Raises SchemeError."""
    found = SHORTHAND.fullmatch(str(shorthand).strip().lower())
    if not found:
        possible = [f"w{w}a{a}" for w in range(1, 9) for a in range(1, 9)]
        raise SchemeError(
            f"{shorthand!r} is not a quantization scheme{nearest(shorthand, possible)}; "
            f"write w<bits>a<bits> with 1 to 8 bits, such as w4a8",
            key="scheme.unknown-shorthand",
        )
    return int(found[1]), int(found[2])


def _wrong_words(scheme: Scheme) -> Iterator[SchemeError]:
    """Words that no scheme has: of families, calibration and delta."""
    families = tuple(FAMILIES)
    words: list[tuple[str, Any, tuple[str, ...]]] = [("family", scheme.family, families)]
    for name in ("weight_family", "activation_family"):
        if getattr(scheme, name) is not None:
            words.append((name, getattr(scheme, name), families))
    words += [("calibration", scheme.calibration, get_args(Calibration)), ("delta", scheme.delta, get_args(Delta))]
    words += [("weight_levels", scheme.weight_levels, get_args(WeightLevels))]
    for name, word, possible in words:
        if word not in possible:
            text = f"{name}: {word!r} is unknown{nearest(word, possible)}; possible are {', '.join(possible)}"
            yield SchemeError(text, key=f"scheme.unknown-{name.rpartition('_')[2]}")


def _wrong_bits(scheme: Scheme) -> Iterator[SchemeError]:
    """Numbers of bits that no scheme has."""
    for name in ("weights", "activations", "first", "last", "sums"):
        bits = getattr(scheme, name)
        if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
            text = f"{name}: {bits!r} is not a number of bits; possible are 1 to 8"
            yield SchemeError(text, key="scheme.no-number-of-bits")
    for pattern, shorthand in scheme.overrides.items():
        try:
            bits_of(shorthand)
        except SchemeError as error:
            yield SchemeError(f"overrides: {pattern}: {error}", key=error.key)


def _wrong_switches(scheme: Scheme) -> Iterator[SchemeError]:
    for name in ("per_channel", "exact"):
        if not isinstance(getattr(scheme, name), bool):
            yield SchemeError(f"{name}: {getattr(scheme, name)!r} is not true or false", key="scheme.not-true-or-false")


def _wrong_for_families(scheme: Scheme) -> Iterator[SchemeError]:
    """What the families do not have, once every word and every number of bits is a possible one."""
    overrides = [(f"overrides: {pattern}", bits_of(text)[0]) for pattern, text in scheme.overrides.items()]
    inner = ("weights", scheme.weights)
    for name, bits in (inner, ("first", scheme.first), ("last", scheme.last), *overrides):
        yield from _wrong_weights(scheme.family_of_weights, name, bits, inner=name == "weights")
    families = (scheme.family_of_weights, scheme.family_of_activations)
    mistake = schedule_mistake(scheme.progressive, min(scheme.weights, scheme.activations), families)
    if mistake is not None:
        yield mistake
    if scheme.weight_levels != "auto" and (fixed := FAMILIES[scheme.family_of_weights].fixed_levels):
        text = f"weight_levels: 2-bit weights of family {scheme.family_of_weights} have {fixed} levels of their own; "
        yield SchemeError(
            text + "take family lsq, lsq_plus or pot, or leave weight_levels out", key="scheme.fixed-levels"
        )
    if scheme.delta != "fixed" and "ewgs" not in families:
        text = f"delta: family {scheme.family} scales no gradients; take family: ewgs, or leave delta out"
        yield SchemeError(text, key="scheme.delta-without-ewgs")
    elif scheme.exact is True and families != ("pot", "pot"):
        yield SchemeError(
            f"exact: scales of family {families[0]} and {families[1]} are not powers of two, so "
            f"integers and floats would round differently; take family: pot",
            key="scheme.exact-without-powers-of-two",
        )


def _wrong_weights(name: FamilyName, where: str, bits: int, *, inner: bool) -> Iterator[SchemeError]:
    """Weights without a grid in their family; those of first and last layers and overrides may take LSQ's instead."""
    family: Family = FAMILIES[name]
    if inner and family.only_bits not in (None, bits):
        text = f"{where}: {name} weights have {family.only_bits} bit{'s' * (family.only_bits != 1)}, not {bits}"
        yield SchemeError(text, key="scheme.wrong-weight-bits")
    elif bits == 1 and family.only_bits != 1 and not family.weights_without_zero:
        yield SchemeError(
            f"{where}: 1-bit weights have no grid in family {name} (its only level would be 0); "
            f"take 2 bits, or weight_family: binary (-1 and 1 times a scale)",
            key="scheme.one-bit-weights",
        )
