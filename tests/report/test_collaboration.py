"""What is said of a collaboration: the combined teacher, the gradients of teachers, and the importance."""

from __future__ import annotations

from typing import Any

import pytest

from qkd.report.collaboration import gradient_beside, gradient_shares, importance_moved, sentences
from qkd.storage.results import TrainResult

COMBINED = {
    "part": "shared",
    "top1": 66.56,
    "members": ["four", "six"],
    "best_member": "six",
    "best_top1": 66.58,
    "difference": -0.02,
    "standard_error": 0.05,
    "disagreement": 1.23,
}


def said(**content: Any) -> list[str]:
    return sentences(TrainResult.from_json(content))


def test_a_student_alone_is_no_collaboration() -> None:
    assert said(top1=97.5) == []


@pytest.mark.parametrize(("difference", "verdict"), [(-0.02, "not better"), (0.05, "not better"), (0.06, "better")])
def test_a_combined_teacher_is_better_by_more_than_one_standard_error(difference: float, verdict: str) -> None:
    (line,) = said(combined={**COMBINED, "difference": difference})
    assert f"is {verdict} than its best member (six: 66.58 %): {difference:+.2f} points, standard error 0.05" in line
    assert "disagree on 1.2 % of the test images" in line


def test_teachers_that_hardly_learn_are_named_with_their_terms() -> None:
    def gradient(beside: float) -> dict[str, Any]:
        return {"beside_student": beside, "terms": {"label/shared": 1.0}, "hardly_learns": beside < 0.1}

    found = said(gradients={"four": gradient(0.053), "six": gradient(0.4), "eight": gradient(0.009)})
    assert found == [
        "gradient beside the student's: six 40 %",
        "gradient beside the student's: four 5.3 %, eight 0.9 %: these teachers hardly learn; "
        "raise the weight of label/shared",
    ]


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (0.0, "importance moved by less than 0.0001 from uniform: it does not matter"),
        (0.004, "importance moved by at most 0.004 from uniform: it does not matter"),
        (0.21, "importance moved by at most 0.21 from uniform"),
    ],
)
def test_importance_that_stands_still_does_not_matter(moved: float, expected: str) -> None:
    assert said(importance_moved=moved) == [expected]


LINES: list[dict[str, Any]] = [
    {"phase": "before", "test/top1": 10.0},
    {
        "gradient_norm/student": 2.0,
        "gradient_norm/four": 0.1,
        "gradient/four/label/shared": 0.9,
        "gradient/four/imitate/shared<ensemble": 0.1,
        "importance/layer1/four": 0.5,
        "importance/layer1/six": 0.5,
        "importance/layer2/four": 0.3,
        "importance/layer2/six": 0.7,
    },
    {"importance/layer1/four": 0.45, "importance/layer1/six": 0.55},
    {"gradient_norm/student": 0.0, "gradient_norm/four": 1.0, "gradient/four/label/shared": 1.0},
    {"gradient_norm/student": 4.0, "gradient_norm/four": float("nan")},
]


def test_metrics_are_read_where_they_were_measured() -> None:
    assert gradient_beside(LINES, "four") == [(1, 0.05)]
    assert gradient_beside(LINES, "six") == []
    assert gradient_shares(LINES, "four") == {"label/shared": 0.95, "imitate/shared<ensemble": 0.05}
    assert importance_moved(LINES) == pytest.approx(0.2)
    assert importance_moved(LINES[:1]) is None
