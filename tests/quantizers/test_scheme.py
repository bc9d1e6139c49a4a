"""A scheme reads what it prints, and refuses what it cannot be."""

from __future__ import annotations

import pytest

from qkd.errors import SchemeError
from qkd.quantizers import Scheme, scheme


def test_schemes_read_what_they_print() -> None:
    for weights in range(2, 9):
        for activations in range(1, 9):
            made = Scheme(weights, activations)
            assert Scheme.parse(str(made)) == made
    assert str(Scheme.parse("W4A8", family="hwgq")) == "w4a8"
    assert scheme(weights=4, activations=8) == Scheme.parse("w4a8")
    assert Scheme(1, 2, family="hwgq").weights == 1
    assert len({Scheme(4, 8), Scheme(4, 8, overrides={"fc": "w8a8"}), Scheme(4, 8)}) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Scheme.parse("w4b8"), "did you mean 'w4a8'"),
        (lambda: Scheme.parse("w9a8"), "1 to 8 bits"),
        (lambda: Scheme(0, 8), "weights: 0"),
        (lambda: Scheme(4, 8, first=9), "first: 9"),
        (lambda: Scheme(4, True), "activations: True"),
        (lambda: Scheme(1, 2), "1-bit weights"),
        (lambda: Scheme(4, 8, family="hwqg"), "did you mean 'hwgq'"),
        (lambda: Scheme(4, 8, calibration="mes"), "did you mean 'mse'"),
        (lambda: Scheme(4, 8, overrides={"fc": "w1a8"}), "overrides: fc"),
        (lambda: Scheme(4, 8, overrides={"fc": "eight"}), "'eight'"),
    ],
)
def test_wrong_schemes_are_refused(wrong: object, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        wrong()  # type: ignore[operator]
