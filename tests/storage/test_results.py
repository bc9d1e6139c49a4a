"""Results as JSON: what is written comes back, and of what others wrote only what fits is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qkd.storage.json_record import JsonRecord
from qkd.storage.results import (
    BenchReport,
    BenchRow,
    DataFacts,
    ExportReport,
    LayerResolution,
    ParticipantCost,
    SecondRuntime,
    TrainingCost,
    TrainResult,
    UnprovenExportReport,
)

COST = TrainingCost(1180.5, 64, {"student": ParticipantCost(78114, 6.7, 32.0), "four": ParticipantCost()})
FULL: tuple[JsonRecord, ...] = (
    TrainResult(run="r", top1=97.5, epochs=3, parts={"student": 97.5}, cost=COST, diagnostics=("a",), finished=True),
    ExportReport(
        file="s.onnx",
        operator_counts={"Conv": 3},
        integer_layers=(),
        float_layers=("fc",),
        reasons={"fc": "a reason"},
        same_in_batches=False,
        openvino=SecondRuntime("0", 97.0, 99.0),
        resolution=(LayerResolution("conv", 2, 4, 1, (1, 64), 0.25, None),),
    ),
    UnprovenExportReport(narrowed=("relu",), top1_unoptimised=97.0),
    BenchReport("p", (BenchRow(file="s.onnx", batch=1, p50_ms=0.25),), ("s.onnx",)),
)


@pytest.mark.parametrize("record", FULL, ids=lambda record: type(record).__name__)
def test_what_is_written_is_read(record: JsonRecord) -> None:
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record
    assert not record.is_empty


def test_keys_of_files_keep_their_names() -> None:
    assert {"alarms", "cost"} <= TrainResult().to_json().keys()
    assert "census" in ExportReport().to_json() and "openvino" not in ExportReport().to_json()
    assert {"coarsened", "top1_literal"} <= UnprovenExportReport().to_json().keys()


@pytest.mark.parametrize("content", [None, 3, "text", [1, 2], {}, {"unknown": 1}])
def test_what_is_no_result_is_an_empty_one(content: object) -> None:
    for record in FULL:
        assert type(record).from_json(content).is_empty


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"top1": "97"}, None),
        ({"top1": True}, None),
        ({"top1": float("nan")}, None),
        ({"top1": float("inf")}, None),
        ({"top1": 97}, 97),
        ({"top1": 97.5}, 97.5),
    ],
)
def test_numbers_are_finite_numbers(content: dict[str, Any], expected: float | None) -> None:
    found = TrainResult.from_json(content).top1
    assert found == expected and type(found) is type(expected)


def test_parts_that_do_not_fit_are_left_out() -> None:
    result = TrainResult.from_json(
        {"epochs": 3.5, "parts": {"student": 97.5, "four": "x"}, "alarms": ["a", 3], "cost": 5}
    )
    assert (result.epochs, result.parts, result.diagnostics, result.cost) == (None, {"student": 97.5}, ("a",), None)
    assert BenchReport.from_json({"rows": 3}).rows is None
    assert BenchReport.from_json({"rows": [{"batch": "x", "file": "s.onnx"}, 4]}).rows == (BenchRow(file="s.onnx"),)
    assert DataFacts.from_json({"shape": [1, 8, "x"], "images": {"test": 3, "val": None}}) == DataFacts(
        shape=(1, 8), images={"test": 3}
    )
