"""How one network is quantized: bits of weights and activations, family, and what departs from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal, get_args

from qkd.errors import SchemeError, nearest
from qkd.quantizers.progressive import require_decreasing

Bits = Annotated[int, "bits, 1 to 8"]
FamilyName = Literal["lsq", "lsq_plus", "pact", "dorefa", "hwgq", "pot", "ternary", "binary", "ewgs"]
Delta = Literal["fixed", "hessian"]
Calibration = Literal["mse", "lsq", "minmax", "percentile", "paper"]

ONLY = {"ternary": 2, "binary": 1}
"""Families whose weights have one number of bits; the ends and overrides take LSQ's grid at any other."""
WITHOUT_ZERO = ("pact", "dorefa", "hwgq", "ewgs")
"""Families whose weights have no level at zero, so that 1 bit is a grid: -1 and 1 times a scale."""

FAMILY_FIELDS = ("family", "weight_family", "activation_family")
BITS_FIELDS = ("weights", "activations", "first", "last", "sums")

SHORTHAND = re.compile(r"w([1-8])a([1-8])")


@dataclass(frozen=True)
class Scheme:
    """Bits and family of a network's quantizers; mistakes raise one SchemeError with a line for each.

    Args:
        weights: bits of conv and linear weights.
        activations: bits of every tensor that feeds a conv or linear layer.
        family: how numbers are rounded and what is learned: lsq, lsq_plus, pact, dorefa, hwgq, pot (powers of two),
            ternary, binary or ewgs.
        weight_family, activation_family: another family for one of the two.
        first: bits of the network's input and of the first layer's weights.
        last: bits of the last layer's input and weights.
        sums: bits of tensors that meet in additions, concatenations and pools and feed no layer directly.
        per_channel: one weight scale per output channel, else one per layer.
        calibration: how steps are chosen from data: mse, lsq, minmax, percentile, or paper (that of the family's paper).
        delta: of family ewgs, how strongly a gradient is scaled: fixed (1e-3), or hessian: from the loss's Hessian, for each
            quantizer, before training and every ten epochs.
        exact: batch norm goes into the weights before they are rounded, and biases are rounded too, so that the logits in
            PyTorch are those of the exported file to the last bit; needs family pot, and a lower learning rate, since no
            batch norm steadies the training.
        progressive: bits at which training begins and goes down, an equal share of its epochs each, the last those of the
            scheme (the fewer of weights and activations); e.g. (8, 4, 2), or (8, 4, 2, 2) to stay longer at the end.
        overrides: layer name pattern (``layer1.*``) -> shorthand for the weights and the input of the layers it
            matches; later ones win. Checked against the layers of the network by ``insert``. A student's may name layers
            of the heads that its product has, as its file names them (``heads.as_teacher.*``, the projector of ATSC).
    """

    weights: Bits
    activations: Bits
    _: KW_ONLY
    family: FamilyName = "lsq"
    weight_family: FamilyName | None = None
    activation_family: FamilyName | None = None
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
        wrong = self._wrong_words() or self._wrong_families()
        wrong += _said(_check_switch, [(name, getattr(self, name)) for name in ("per_channel", "exact")])
        if wrong:
            raise SchemeError("\n".join(wrong))

    def _wrong_words(self) -> list[str]:
        """What is a word or a number of bits that no scheme has, a line each."""
        families = [(name, getattr(self, name), get_args(FamilyName)) for name in FAMILY_FIELDS]
        words = [each for each in families if each[1] is not None or each[0] == "family"]
        words += [("calibration", self.calibration, get_args(Calibration)), ("delta", self.delta, get_args(Delta))]
        wrong = _said(_check_word, words) + _said(_check_bits, [(name, getattr(self, name)) for name in BITS_FIELDS])
        return wrong + _said(_bits_of_override, self.overrides.items())

    def _wrong_families(self) -> list[str]:
        """What does not fit the families, a line each; all words are known by now."""
        families = (self.of_weights, self.of_activations)
        weights = [("weights", self.weights, "weights"), ("first", self.first, "ends"), ("last", self.last, "ends")]
        weights += [(f"overrides: {name}", bits_of(text)[0], "ends") for name, text in self.overrides.items()]
        wrong = _said(self._check_weights, weights)
        wrong += _said(require_decreasing, [(self.progressive, min(self.weights, self.activations), families)])
        return wrong + _said(self._check_of_one_family, [()])

    def _check_of_one_family(self) -> None:
        if self.delta != "fixed" and "ewgs" not in (self.of_weights, self.of_activations):
            raise SchemeError(f"delta: family {self.family} scales no gradients; take family: ewgs, or leave delta out")
        if self.exact is True and (self.of_weights, self.of_activations) != ("pot", "pot"):
            raise SchemeError(
                f"exact: scales of family {self.of_weights} and {self.of_activations} are no powers of two, so that "
                f"integers round otherwise than floats; take family: pot"
            )

    def _check_weights(self, name: str, bits: int, kind: str) -> None:
        """Whether weights of so many bits have a grid in their family that export can write."""
        family = self.of_weights
        only = ONLY.get(family)
        if only is not None and bits != only and kind == "weights":
            raise SchemeError(f"{name}: {family} weights have {only} bit{'s' * (only > 1)}, not {bits}")
        if bits == 1 and only != 1 and family not in WITHOUT_ZERO:
            raise SchemeError(
                f"{name}: 1-bit weights have no grid in family {family} (its only level would be 0); "
                f"take 2 bits, or weight_family: binary (-1 and 1 times a scale)"
            )

    @property
    def of_weights(self) -> FamilyName:
        """The family of the weights."""
        return self.weight_family or self.family

    @property
    def of_activations(self) -> FamilyName:
        return self.activation_family or self.family

    @classmethod
    def parse(cls, text: str, **options: Any) -> Scheme:
        """The scheme of a shorthand such as ``w4a8``; options are those of the class."""
        weights, activations = bits_of(text)
        return cls(weights, activations, **options)

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"


def scheme(
    *,
    weights: Bits,
    activations: Bits,
    family: FamilyName = "lsq",
    weight_family: FamilyName | None = None,
    activation_family: FamilyName | None = None,
    first: Bits = 8,
    last: Bits = 8,
    sums: Bits = 8,
    per_channel: bool = True,
    calibration: Calibration = "mse",
    delta: Delta = "fixed",
    exact: bool = False,
    progressive: tuple[int, ...] = (),
    overrides: Mapping[str, str] | None = None,
) -> Scheme:
    """The long form of a scheme, as a recipe writes it; see `Scheme` for the meaning of each option."""
    return Scheme(
        weights,
        activations,
        family=family,
        weight_family=weight_family,
        activation_family=activation_family,
        first=first,
        last=last,
        sums=sums,
        per_channel=per_channel,
        calibration=calibration,
        delta=delta,
        exact=exact,
        progressive=progressive,
        overrides=overrides or {},
    )


def bits_of(shorthand: str) -> tuple[int, int]:
    """Bits of weights and of activations in a shorthand such as ``w4a8``."""
    found = SHORTHAND.fullmatch(str(shorthand).strip().lower())
    if not found:
        known = [f"w{w}a{a}" for w in range(1, 9) for a in range(1, 9)]
        raise SchemeError(
            f"{shorthand!r} is not a quantization scheme{nearest(shorthand, known)}; "
            f"write w<bits>a<bits> with 1 to 8 bits, such as w4a8"
        )
    return int(found[1]), int(found[2])


def _bits_of_override(pattern: str, shorthand: str) -> None:
    try:
        bits_of(shorthand)
    except SchemeError as error:
        raise SchemeError(f"overrides: {pattern}: {error}") from error


def _said(check: Callable[..., None], each: Iterable[Sequence[Any]]) -> list[str]:
    """What a check says of whatever it is given in turn."""
    wrong = []
    for given in each:
        try:
            check(*given)
        except SchemeError as error:
            wrong.append(str(error))
    return wrong


def _check_bits(name: str, bits: Any) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
        raise SchemeError(f"{name}: {bits!r} is not a number of bits; possible are 1 to 8")


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise SchemeError(f"{name}: {value!r} is not true or false")


def _check_word(name: str, word: Any, known: tuple[str, ...]) -> None:
    if word not in known:
        raise SchemeError(f"{name}: {word!r} is unknown{nearest(word, known)}; possible are {', '.join(known)}")
