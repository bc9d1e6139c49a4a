"""CIFAR-10's rows: sizes, what the search found, and the recipe and overrides of every row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """One setting: architectures, data and schedules that all rows share. ``of_class``: images of a class, None for all."""

    student: str
    teacher: str
    assistant: str
    only: Path | None
    float_epochs: int
    epochs: int
    batch: int = 128
    rate: float = 0.05
    of_class: int | None = None
    val: float = 0.1


LIST = HERE / "cifar10_20000.txt"
SIZES = {
    "small": Size("resnet8", "resnet14", "resnet8", LIST, 20, 3),
    "few": Size("resnet8", "resnet14", "resnet8", LIST, 20, 20, batch=64, rate=0.02, of_class=400, val=0.5),
    "large": Size("resnet20", "resnet56", "resnet32", None, 100, 60),
}


PUBLISHED = "method.target=min_logit method.alpha=1 method.beta=0.5"
COMBINED = "method.target=combined method.beta=1"
IN_FULL = ("method.alpha=1", "method.gamma=1000")
"""CMT-KD where labels are many."""
FINER = 'student.quantize={<bits>,"overrides":{"heads.*":"w4a4"}}'
"""ATSC's projector at four bits."""
TUNED = {
    "kd": "method.soft=0.5",
    "kd, own size": "method.soft=0.9",
    "sqakd": "method.feature=lattice match=[layer1,layer2,layer3]",
    "three_phase, own size": "method.weight=3",
    "dml, own size": "teachers.four.quantize=w8a8 method.weight=3",
    "cmtkd": f"{COMBINED} method.alpha=0.1",
    "ctkd": "method.attention=1000",
    "dgkd": "method.soft=0.9",
    "atsc": f"method.labels=0.5 method.soft=0.5 method.feature=0.1 method.reduce=1 {FINER}",
    "ffcl": "method.response=3 method.feature=0",
}
"""What the search found at size `few`: the best of a method, for all its rows, or for one row alone. QAT's, a lower rate, is a
row beside that with the size's own."""


def rows(size: Size, tuned: bool = True) -> dict[str, list[str]]:
    """Recipe and overrides of every row; variants of a method (behind a comma) begin with what was tuned for it."""
    found = _untuned(size)
    if tuned:
        for name, words in found.items():
            words[1:1] = TUNED.get(name, TUNED.get(name.partition(",")[0], "")).split()
    return found


def _teachers(**named: str) -> str:
    return f"teachers={{{', '.join(f'{name}: {entry}' for name, entry in named.items())}}}"


def _network(build: str, bits: str = "off", start: str = "") -> str:
    return f"{{build: {build}, quantize: {bits}, start_from: {start or '<start>/' + build + '.safetensors'}}}"


def _three(build: str, *starts: str) -> str:
    """CMT-KD's teachers; from one float start, or each from its own."""
    named = zip(("four", "six", "eight"), (4, 6, 8), starts or [build] * 3, strict=True)
    return _teachers(**{n: _network(build, f"w{b}a{b}", f"<start>/{start}.safetensors") for n, b, start in named})


def _sized(build: str, assistant: str) -> dict[str, list[str]]:
    """The methods whose teachers may be larger than the student or of its size."""
    scratch, chain = _network(build, "w4a4", "scratch"), _network(assistant, "w4a4")
    return {
        "kd": ["cifar10_kd_w2a2", _teachers(float=_network(build))],
        "ctkd": ["cifar10_ctkd_w2a2", _teachers(scratch=scratch, expert=_network(build))],
        "dgkd": ["cifar10_dgkd_w2a2", _teachers(teacher=_network(build), assistant=chain)],
        "ffcl": ["cifar10_ffcl_w2a2", _teachers(partner=_network(build, "w4a4"))],
        "atsc": ["cifar10_atsc_w2a2", _teachers(teacher=_network(build, "w8a8"))],
        "dml": ["cifar10_dml_w2a2", _teachers(four=_network(build, "w4a4"))],
        "three_phase": ["cifar10_three_phase_w2a2", _teachers(float=_network(build))],
    }


def _cmtkd(size: Size) -> dict[str, list[str]]:
    """CMT-KD and its ablations."""
    own, large = (["cifar10_cmtkd_w2a2", _three(build)] for build in (size.student, size.teacher))
    published = PUBLISHED.split()
    return {
        "cmtkd": own,
        "cmtkd, labels in full": [*own, *IN_FULL],
        "cmtkd, large teachers, labels in full": [*large, *IN_FULL],
        "cmtkd, as published": [*own, *published],
        "cmtkd, as published, large teachers": [*large, *published],
        "cmtkd, large teachers": large,
        "cmtkd, three starts": [own[0], _three(size.student, *(f"{size.student}{seed}" for seed in ("", "-1", "-2")))],
        "cmtkd, frozen teachers": [*own, "method.teachers=frozen"],
        "cmtkd, uniform importance": [*own, "method.importance=uniform"],
        "cmtkd, no exchange": [*own, "method.exchange=false"],
        "cmtkd, no mutual": [*own, "method.mutual=none"],
        "cmtkd, hint": [*own, "method.feature=hint"],
        "cmtkd, no feature loss": [*own, "method.feature=none"],
    }


def _untuned(size: Size) -> dict[str, list[str]]:
    own = _sized(size.student, size.assistant)
    float_copy, four = _network(size.student), _network(size.student, "w4a4")
    both = _teachers(four=four, eight=_network(size.student, "w8a8"))
    return {
        "qat": ["cifar10_qat_w2a2"],
        "qat, rate 0.01": ["cifar10_qat_w2a2", "train.rate=0.01"],
        **_sized(size.teacher, size.assistant),
        **{f"{name}, own size": words for name, words in own.items()},
        "kd, own size, half of the loss": [*own["kd"], "method.soft=0.5"],
        "ctkd, own size, both trained": ["cifar10_ctkd_w2a2", _teachers(scratch=four, expert=float_copy)],
        "atsc, own size, two teachers": ["cifar10_atsc_w2a2", both],
        "sqakd": ["cifar10_sqakd_w2a2", _teachers(float=float_copy)],
        **_cmtkd(size),
    }
