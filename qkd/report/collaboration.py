"""Says in sentences whether the networks of a run worked together: what teachers learned, and what they know as one."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qkd.report import formatting
from qkd.report.tables import STUDENT
from qkd.storage.collaboration import CombinedTeacher, TeacherGradient
from qkd.storage.json_record import is_number
from qkd.storage.results import TrainResult

NORM = "gradient_norm/"
SHARES = "gradient/"
IMPORTANCE = "importance/"
STILL = 0.02  # importance that stays this close to uniform weighs every teacher alike
Lines = Sequence[Mapping[str, Any]]


def gradient_beside(lines: Lines, part: str) -> list[tuple[int, float]]:
    """The norm of a part's gradient over that of the student's, before clipping: (place among the lines, ratio)."""
    found = []
    for place, line in enumerate(lines):
        own, student = line.get(NORM + part), line.get(NORM + STUDENT)
        if is_number(own) and is_number(student) and student:
            found.append((place, own / student))
    return found


def gradient_shares(lines: Lines, part: str) -> dict[str, float]:
    """The mean share of each term in a part's gradient, 0..1, over the looks, the largest first."""
    prefix = f"{SHARES}{part}/"
    looks = [line for line in lines if any(key.startswith(prefix) for key in line)]
    names = dict.fromkeys(key for line in looks for key in line if key.startswith(prefix))
    means = {name.removeprefix(prefix): statistics.fmean(line.get(name, 0.0) for line in looks) for name in names}
    return {name: round(mean, 4) for name, mean in sorted(means.items(), key=lambda pair: -pair[1])}


def importance_moved(lines: Lines) -> float | None:
    """How far any weight of a teacher was from uniform, 0..1, behind any epoch; None without learned importance."""
    moved = []
    for line in lines:
        stages: dict[str, list[float]] = {}
        for key, value in line.items():
            if key.startswith(IMPORTANCE) and key.count("/") >= 2 and is_number(value):
                stages.setdefault(key.split("/")[1], []).append(float(value))
        moved += [abs(weight - 1 / len(weights)) for weights in stages.values() for weight in weights]
    return round(max(moved), 4) if moved else None


def sentences(result: TrainResult) -> list[str]:
    """The three of them that apply to a run: none for a student that learns alone or from one frozen teacher."""
    found = [*map(combined_sentence, filter(None, [result.combined])), *gradient_sentences(result.gradients or {})]
    return [*found, *filter(None, [importance_sentence(result.importance_moved)])]


def combined_sentence(found: CombinedTeacher) -> str:
    """The combined teacher beside its best member, and whether it is better by more than one standard error."""
    apart = f"; two members disagree on {formatting.percent(found.disagreement)} of the test images"
    apart = apart if found.disagreement is not None else ""
    best = f"its best member ({found.best_member}: {formatting.percent(found.best_top1, 2)})"
    beside = f"{signed(found.difference)} points, standard error {found.standard_error or 0.0:.2f}"
    is_better = is_better_than_members(found)
    verdict = "better than" if is_better else "not better than"
    return f"combined teacher ({found.part}: {formatting.percent(found.top1, 2)}) is {verdict} {best}: {beside}{apart}"


def is_better_than_members(found: CombinedTeacher) -> bool:
    """Whether the combined teacher is above its best member by more than one standard error."""
    return found.difference is not None and found.difference > (found.standard_error or 0.0)


def gradient_sentences(found: Mapping[str, TeacherGradient]) -> list[str]:
    """One for the teachers that learn, one for those that hardly do, with the terms that teach them."""
    told = []
    for hardly in (False, True):
        chosen = {part: each for part, each in found.items() if bool(each.hardly_learns) == hardly}
        listed = ", ".join(f"{part} {_percent(each.beside_student)}" for part, each in chosen.items())
        if not chosen:
            continue
        told.append(f"gradient beside the student's: {listed}")
        if hardly:
            terms = dict.fromkeys(term for each in chosen.values() for term in each.terms or {})
            told[-1] += f": {_they(chosen)} hardly {'learn' if len(chosen) > 1 else 'learns'}"
            told[-1] += f"; raise the weight of {_listed(terms)}" if terms else ""
    return told


def _they(parts: Mapping[str, object]) -> str:
    return "these teachers" if len(parts) > 1 else "this teacher"


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def importance_sentence(moved: float | None) -> str:
    """How far importance moved; empty where there is none."""
    if moved is None:
        return ""
    judged = ": it does not matter" if moved < STILL else ""
    most = f"at most {moved:.2g}" if moved >= 1e-4 else "less than 0.0001"
    return f"importance moved by {most} from uniform{judged}"


def _percent(ratio: float | None) -> str:
    return formatting.MISSING if ratio is None else formatting.percent(100 * ratio, 1 if ratio < 0.1 else 0)


def signed(points: float | None, digits: int = 2) -> str:
    """Points with their sign: ``+0.35``, ``-0.02``."""
    return formatting.MISSING if points is None else f"{points:+.{digits}f}"


def capital(text: str) -> str:
    """The text with a capital letter, at the beginning of a sentence on a page."""
    return text[:1].upper() + text[1:]
