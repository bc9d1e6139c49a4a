"""What a run folder holds, for reports and comparisons. Reading never fails: what is missing or damaged is only absent."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkd.errors import RunError, SchemeError
from qkd.quantizers.scheme import Scheme, titled
from qkd.recipe.stored_scheme import at_its_time
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
from qkd.storage.json_record import is_number
from qkd.storage.results import BenchReport, BenchRow, DataFacts, ExportReport, TrainResult
from qkd.storage.run import Run

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.recipe import Recipe

SHORTHAND = re.compile(r"w([1-8])a([1-8])", re.IGNORECASE)


@dataclass(frozen=True)
class RunData:
    """The files of a run. Of a file that is missing or cannot be read the value is empty."""

    run: Run
    result: TrainResult
    export: ExportReport
    bench: BenchReport
    data: DataFacts
    environment: Mapping[str, Any]
    recipe: Mapping[str, Any]
    recipe_text: str
    original_text: str
    lines: tuple[Mapping[str, Any], ...]
    damaged: tuple[str, ...]  # one sentence for each file that is there and cannot be read

    @property
    def warnings(self) -> list[str]:
        """Sentences that a reader of the figures has to know."""
        return [*self.damaged, *filter(None, [self.outdated])]

    @property
    def epochs(self) -> list[Mapping[str, Any]]:
        """The lines of metrics that stand for an epoch, in order."""
        return [line for line in self.lines if line.get("phase") != CALIBRATED and "epoch" in line]

    @property
    def before_top1(self) -> float | None:
        """Top-1 on the test split after calibration, before training."""
        if self.result.before_top1 is not None:
            return self.result.before_top1
        logged = (line.get("test/top1") for line in self.lines if line.get("phase") == CALIBRATED)
        return next((value for value in logged if is_number(value)), None)

    @property
    def student(self) -> Mapping[str, Any]:
        """The entry of the student in the recipe."""
        return mapping(self.recipe.get("student"))

    @property
    def rows(self) -> list[BenchRow]:
        """The rows of the benchmark that name their file."""
        return [row for row in self.bench.rows or () if row.file is not None]

    @cached_property
    def outdated(self) -> str:
        """A sentence where the exported file has changed since it was verified; empty where it has not, or is missing."""
        path = self.run.folder / file_name(self.export.file)
        try:
            same = self.export.sha256 in (None, sha256(path))
        except OSError:
            return ""
        return "" if same else f"{path}: no longer the file that was verified; `qkd export {self.run.folder}` again"


def read_run(run: Run) -> RunData:
    """Read a run folder. Raises nothing; ``damaged`` and ``warnings`` of the result name what is wrong."""
    text = _text(run, RECIPE)
    return RunData(
        run,
        result=TrainResult.from_json(_json(run, RESULT)),
        export=_without_emulator(ExportReport.from_json(_json(run, EXPORT))),
        bench=BenchReport.from_json(_json(run, BENCH)),
        data=DataFacts.from_json(_json(run, DATA)),
        environment=_json(run, ENVIRONMENT),
        recipe=mapping(read_source(text, RECIPE).data),
        recipe_text=text,
        original_text=_text(run, ORIGINAL_RECIPE),
        lines=tuple(_lines(run)),
        damaged=tuple(filter(None, (_damage(run, name) for name in (RESULT, EXPORT, BENCH, DATA)))),
    )


def _without_emulator(export: ExportReport) -> ExportReport:
    """Without what the integer emulator found where the file has no integer layer: it proves nothing there."""
    return (
        export if export.integer_layers != () else dataclasses.replace(export, equal_fraction=None, top1_emulator=None)
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def file_name(path: str | None) -> str:
    """The last part of a path; empty for None."""
    return Path(path or "").name


def _json(run: Run, name: str) -> dict[str, Any]:
    """The object a file holds, without the keys whose value is null; empty where it cannot be read."""
    try:
        return {key: value for key, value in run.read_json(name).items() if value is not None}
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
    """The lines of the metrics that can be read; the last one of a run that was killed may be incomplete."""
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


def levels(entry: Mapping[str, Any]) -> int | None:
    """How many levels the 2-bit weights of a network in a recipe have; None for other bits, and where it cannot be said."""
    scheme = entry.get("quantize")
    try:
        made = Scheme(**scheme) if isinstance(scheme, Mapping) else Scheme.parse(str(scheme))
    except (SchemeError, TypeError):
        return None
    return (at_its_time(made, scheme) if isinstance(scheme, Mapping) else made).levels


def scheme_text(entry: Mapping[str, Any]) -> str:
    """The scheme of a network as ``w2a4``, or ``float``."""
    found = bits(entry)
    return f"w{found[0]}a{found[1]}" if found else "float"


def scheme_title(entry: Mapping[str, Any]) -> str:
    """The scheme of a network with the levels of 2-bit weights, ``w2a4 (4 levels)``, or ``float``."""
    return titled(scheme_text(entry), levels(entry))


def exported_rows(run_data: RunData) -> list[BenchRow]:
    """The rows of the benchmark that belong to the exported file, not to what it is compared with.

    Where nothing is known of the export, those of all files but the float one.
    """
    name = file_name(run_data.export.file)
    own = [row for row in run_data.rows if file_name(row.file) == name]
    return own if name else [row for row in run_data.rows if not is_float_file(row)]


def is_float_file(row: BenchRow) -> bool:
    """Whether a row of the benchmark is of the float file of the same network."""
    return file_name(row.file) == FLOAT_ONNX


def headline_row(rows: Sequence[BenchRow]) -> BenchRow:
    """The row that sentences quote: the smallest batch on the fewest threads. Empty where there is none."""
    return min(rows, key=lambda row: (row.batch or 0, row.threads or 0), default=BenchRow())


def assemble_again(run_data: RunData) -> tuple[Recipe, Assembly] | str:
    """The recipe and its networks and plan, with fresh weights; or a sentence why they cannot be built any more."""
    from qkd import recipe as recipes
    from qkd.assembly.assemble import assemble
    from qkd.tasks.spec import DataSpec

    shape, labels = run_data.data.shape or (), run_data.data.labels
    if len(shape) != 3 or labels is None:
        return f"{DATA} does not hold the size of the images"
    try:
        recipe = recipes.load(run_data.run.folder / RECIPE, paths_exist=False)
        return recipe, assemble(recipe, DataSpec((shape[0], shape[1], shape[2]), len(labels)))
    except Exception as error:  # a recipe may name code of the user's own, which may do anything, or be gone
        return next(iter(str(error).splitlines()), type(error).__name__)
