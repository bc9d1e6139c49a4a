"""What a run finds out about the collaboration of its networks: whether teachers learn, and what they know together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qkd.storage.json_record import JsonRecord


@dataclass(frozen=True)
class CombinedTeacher(JsonRecord):
    """The combined teacher beside its best member, on the test split.

    ``part``: what gives its logits. ``difference``: ``top1`` minus ``best_top1`` in points; ``standard_error``: of that, over
    the images on which one of them alone is right. ``disagreement``: share of images to which two members give different
    classes, in %, the mean over all pairs.
    """

    part: str | None = None
    top1: float | None = None
    members: tuple[str, ...] | None = None
    best_member: str | None = None
    best_top1: float | None = None
    difference: float | None = None
    standard_error: float | None = None
    disagreement: float | None = None


@dataclass(frozen=True)
class TeacherGradient(JsonRecord):
    """The gradient of a teacher that learns beside the student.

    ``beside_student``: its norm over that of the student's, the median over the looks. ``terms``: the share of each term in
    it, 0..1, the mean over the looks. ``hardly_learns``: its steps are small beside the student's.
    """

    beside_student: float | None = None
    terms: Mapping[str, float] | None = None
    hardly_learns: bool | None = None
