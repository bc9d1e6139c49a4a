"""A scheme reads what it prints, refuses what it cannot be, and needs no Brevitas; the package imports names on first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import qkd.quantizers
from qkd.errors import SchemeError
from qkd.quantizers import FAMILIES, Scheme
from tests.support.refusals import Refused


def test_schemes_read_what_they_print() -> None:
    for weights in range(2, 9):
        for activations in range(1, 9):
            scheme = Scheme(weights, activations)
            assert Scheme.parse(str(scheme)) == scheme
    assert str(Scheme.parse("W4A8", family="hwgq")) == "w4a8"
    assert Scheme(weights=4, activations=8) == Scheme.parse("w4a8")
    assert Scheme(1, 2, family="hwgq").weights == 1
    assert len({Scheme(4, 8), Scheme(4, 8, overrides={"fc": "w8a8"}), Scheme(4, 8)}) == 2


WRONG: dict[str, tuple[Callable[[], Scheme], str]] = {
    "no shorthand": (lambda: Scheme.parse("w4b8"), "scheme.unknown-shorthand"),
    "too many bits in a shorthand": (lambda: Scheme.parse("w9a8"), "scheme.unknown-shorthand"),
    "no bits": (lambda: Scheme(0, 8), "scheme.no-number-of-bits"),
    "too many bits": (lambda: Scheme(4, 8, first=9), "scheme.no-number-of-bits"),
    "a switch as bits": (lambda: Scheme(4, True), "scheme.no-number-of-bits"),
    "one bit": (lambda: Scheme(1, 2), "scheme.one-bit-weights"),
    "family": (lambda: Scheme(4, 8, family="hwqg"), "scheme.unknown-family"),
    "calibration": (lambda: Scheme(4, 8, calibration="mes"), "scheme.unknown-calibration"),
    "one bit in an override": (lambda: Scheme(4, 8, overrides={"fc": "w1a8"}), "scheme.one-bit-weights"),
    "no shorthand in an override": (lambda: Scheme(4, 8, overrides={"fc": "eight"}), "scheme.unknown-shorthand"),
    "two mistakes": (lambda: Scheme(0, 9), "scheme.several-mistakes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_schemes_are_refused(case: str, refused: Refused) -> None:
    wrong, key = WRONG[case]
    with refused(SchemeError, key):
        wrong()


def test_families_are_those_of_the_table() -> None:
    assert get_args(get_type_hints(Scheme)["family"]) == tuple(FAMILIES)


def test_a_scheme_needs_no_brevitas() -> None:
    code = "import sys; from qkd.quantizers import FAMILIES, Scheme; Scheme.parse('w4a8'); sys.exit('brevitas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(qkd.quantizers.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: str(node.module).removeprefix("qkd.quantizers.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == qkd.quantizers.MODULES
    assert not set(seen) & set(seen.values())
    assert all(getattr(qkd.quantizers, name).__name__ == name for name in seen if name != "FAMILIES")
    assert not hasattr(qkd.quantizers, "scheme_of")
