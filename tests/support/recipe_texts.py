"""Texts of recipes for tests, and a folder to write them in."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkd import recipe
from qkd.errors import RecipeError

GOOD = """\
method:   {name: kd, temperature: 4}
student:  {build: resnet8, width: 8, quantize: w2a2}
teachers:
  four:   {build: resnet8, quantize: w4a4}
  float:  {build: resnet20, quantize: off}
match:    [layer1, layer2]
data:     {name: digits, batch: 64, size: 16}
train:    {epochs: 12, rate: 5e-2}
"""
OWN = """\
from pathlib import Path
from typing import Literal

def taught(setup, *, share: float, kind: Literal["soft", "hard"] = "soft", on: bool = True, table: Path | None = None,
           sizes: tuple[int, ...] = (1, 2), either: int | list[int] = 3, copy: str = "x"):
    pass

def open_ended(setup, **options):
    return options

NUMBER = 3
"""


def folder_in(tmp_path: Path) -> Path:
    """A folder ``here`` with a recipe and a file of user methods, and an empty folder ``elsewhere`` beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "good.yaml").write_text(GOOD)
    (folder / "mine.py").write_text(OWN)
    return folder


def problems(text: str | bytes, *overrides: str) -> list[str]:
    """The messages about a recipe, without the name of its file."""
    Path("r.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as error:
        recipe.load("r.yaml", overrides)
    assert error.value.exit_code == 2
    assert str(error.value).splitlines() == [str(problem) for problem in error.value.problems]
    here = str(Path.cwd())
    return [str(problem).removeprefix("r.yaml:").replace(here, "HERE") for problem in error.value.problems]


def changed(**lines: str) -> str:
    """A minimal recipe with ``lines`` changed or added, an entry a line, in the order given."""
    entries = {
        "method": "{name: qat}",
        "student": "{build: resnet8}",
        "data": "{name: fake}",
        "train": "{epochs: 1}",
        **lines,
    }
    return "".join(f"{name}: {value}\n" for name, value in entries.items())
