"""Evidence: everything a run folder holds that is worth telling, read so that what is missing or damaged is only absent."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkd.errors import RunError
from qkd.recipe.yaml_text import read_source
from qkd.storage.artifacts import (
    BENCH,
    CALIBRATED,
    DATA,
    ENVIRONMENT,
    EXPORT,
    FLOAT_ONNX,
    METRICS,
    ORIGINAL_RECIPE,
    RECIPE,
    RESULT,
)
from qkd.storage.atomic import sha256
from qkd.storage.run import Run

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.recipe import Recipe

SHORTHAND = re.compile(r"w([1-8])a([1-8])", re.IGNORECASE)

ACCURACIES = frozenset(
    {"top1", "float_top1", "before_top1", "val_top1", "top1_torch", "top1_onnxruntime", "top1_emulator"}
)
SPEEDS = frozenset(
    {"batch", "threads", "p50_ms", "p95_ms", "images_per_second", "speedup", "seconds", "training_seconds"}
)
NUMBERS = ACCURACIES | SPEEDS | {"bytes", "float_bytes", "images", "equal_fraction", "agreement", "ece"}
LISTS = frozenset({"rows", "labels", "shape", "float_layers"})
MAPPINGS = frozenset({"parts", "census", "reasons"})


@dataclass(frozen=True)
class RunData:
    """What a run tells about itself. An empty mapping, text or tuple: that file is not there, or cannot be read."""

    run: Run
    result: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    bench: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    original_text: str = ""
    lines: tuple[Mapping[str, Any], ...] = ()
    damaged: tuple[str, ...] = ()  # what is wrong with files that are there and cannot be read

    @property
    def warnings(self) -> list[str]:
        """What whoever looks at the figures has to know."""
        return [*self.damaged, *filter(None, [self.outdated])]

    @property
    def epochs(self) -> list[Mapping[str, Any]]:
        """The lines of metrics that stand for an epoch, in order."""
        return [line for line in self.lines if line.get("phase") != CALIBRATED and "epoch" in line]

    @property
    def before_top1(self) -> float | None:
        """Top-1 on test after calibration alone."""
        logged = (line.get("test/top1") for line in self.lines if line.get("phase") == CALIBRATED)
        return self.result.get("before_top1", next((value for value in logged if is_number(value)), None))

    @property
    def student(self) -> Mapping[str, Any]:
        return mapping(self.recipe.get("student"))

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of the benchmark."""
        rows = (valid_entries(row) for row in self.bench.get("rows", []) if isinstance(row, Mapping))
        return [row for row in rows if isinstance(row.get("file"), str)]

    @cached_property
    def outdated(self) -> str:
        """What to say where the exported file is no longer the one that was verified; empty where it is, or is not there."""
        path = self.run.folder / Path(str(self.export.get("file", ""))).name
        try:
            same = self.export.get("sha256") in (None, sha256(path))
        except OSError:
            return ""
        return "" if same else f"{path}: no longer the file that was verified; `qkd export {self.run.folder}` again"


def read_run(run: Run) -> RunData:
    """Read a run folder. Nothing raises: the page says what is there."""
    text = _text(run, RECIPE)
    return RunData(
        run,
        result=_json(run, RESULT),
        export=_of_integers(_json(run, EXPORT)),
        bench=_json(run, BENCH),
        environment=_json(run, ENVIRONMENT),
        data=_json(run, DATA),
        recipe=mapping(read_source(text, RECIPE).data),
        recipe_text=text,
        original_text=_text(run, ORIGINAL_RECIPE),
        lines=tuple(_lines(run)),
        damaged=tuple(filter(None, (_damage(run, name) for name in (RESULT, EXPORT, BENCH, DATA)))),
    )


def _of_integers(export: dict[str, Any]) -> dict[str, Any]:
    """Without what the integer emulator found, where the file has no integer layer: it says nothing there."""
    said = () if export.get("integer_layers") != [] else ("equal_fraction", "top1_emulator")
    return {name: value for name, value in export.items() if name not in said}


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def valid_entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are what their name promises; None is as good as not there."""
    return {name: value for name, value in content.items() if value is not None and _fits(name, value)}


def _fits(name: str, value: Any) -> bool:
    if name in NUMBERS:
        return is_number(value) or (name == "images" and isinstance(value, Mapping))
    if name in MAPPINGS:
        return isinstance(value, Mapping) and (name == "reasons" or all(map(is_number, value.values())))
    return isinstance(value, list) if name in LISTS else True


def _json(run: Run, name: str) -> dict[str, Any]:
    try:
        return valid_entries(run.read_json(name))
    except (RunError, OSError, TypeError, ValueError):
        return {}


def _damage(run: Run, name: str) -> str:
    try:
        if (run.folder / name).exists():
            run.read_json(name)
    except (RunError, OSError) as error:
        return str(error)
    return ""


def _text(run: Run, name: str) -> str:
    try:
        return (run.folder / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lines(run: Run) -> list[Mapping[str, Any]]:
    """The lines of the metrics; a run that was killed may have left half a one."""
    found = []
    for line in _text(run, METRICS).splitlines():
        try:
            found.append(mapping(json.loads(line)))
        except ValueError:
            continue
    return [line for line in found if line]


def bits(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Bits of weights and activations of a network in a recipe, written short or long; None where it stays float."""
    scheme = entry.get("quantize")
    if isinstance(scheme, str) and (found := SHORTHAND.fullmatch(scheme)):
        return int(found[1]), int(found[2])
    if isinstance(scheme, Mapping) and "weights" in scheme and "activations" in scheme:
        return scheme["weights"], scheme["activations"]
    return None


def scheme_text(entry: Mapping[str, Any]) -> str:
    """The scheme of a network as ``w2a4``, or ``float``."""
    found = bits(entry)
    return f"w{found[0]}a{found[1]}" if found else "float"


def exported_rows(evidence: RunData) -> list[Mapping[str, Any]]:
    """The rows of the benchmark that belong to the exported file, not to what it is compared with.

    Where nothing is known of the export, those of all files but the float one.
    """
    name = Path(str(evidence.export.get("file", ""))).name
    own = [row for row in evidence.rows if Path(row["file"]).name == name]
    return own if name else [row for row in evidence.rows if not is_float_file(row)]


def is_float_file(row: Mapping[str, Any]) -> bool:
    """Whether a row of the benchmark is of the float file of the same network."""
    return Path(row["file"]).name == FLOAT_ONNX


def headline_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row one would quote: the smallest batch on the fewest threads. Empty where there is none."""
    return min(rows, key=lambda row: (row.get("batch", 0), row.get("threads", 0)), default={})


def assemble_again(evidence: RunData) -> tuple[Recipe, Assembly] | str:
    """The recipe and its networks and plan, with fresh weights; or why they cannot be built any more."""
    from qkd import recipe as recipes
    from qkd.assembly.assemble import assemble
    from qkd.tasks.spec import DataSpec

    if not {"shape", "labels"} <= evidence.data.keys():
        return f"{DATA} does not tell the size of the images"
    try:
        recipe = recipes.load(evidence.run.folder / RECIPE, paths_exist=False)
        return recipe, assemble(recipe, DataSpec(tuple(evidence.data["shape"]), len(evidence.data["labels"])))
    except Exception as error:  # a recipe may name code of the user's own, which may do anything, or be gone
        return next(iter(str(error).splitlines()), type(error).__name__)
