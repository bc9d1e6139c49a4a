"""CIFAR-10: the settings that were tried, on the validation split.

`SEARCH`: the same budget for every method. Its eight settings with one seed, the best two with two more; the mean decides.
`TRIALS`: what was asked besides, one seed each: whether a term of CMT-KD helps, what large teachers want, what ATSC lacks.
"""

from __future__ import annotations

from cifar10_rows import COMBINED, FINER, PUBLISHED

SEEDS = (100, 101, 102)
"""Of the search: the first for all settings, the others for those that go on."""
GO_ON = 2

ATSC = "method.labels=0.5 method.soft=0.5 method.feature=0.1 method.reduce=1"
OWN = f"{COMBINED} method.alpha=0.1"
SEARCH: dict[str, tuple[tuple[str, str], ...]] = {
    "qat": (
        ("qat", "train.rate=0.01"),
        ("qat", "train.rate=0.02"),
        ("qat", "train.rate=0.05"),
        ("qat", "train.rate=0.1"),
        ("qat", "train.rate=0.02 train.mixup=0.2"),
        ("qat", "train.rate=0.02 train.cutout=8"),
        ("qat", "train.rate=0.02 train.weight_decay=0.0005"),
        ("qat", "train.optimizer=adamw train.rate=0.001"),
    ),
    "kd": (
        ("kd", "method.soft=0.5"),
        ("kd", "method.soft=0.9"),
        ("kd", "method.soft=0.99"),
        ("kd, own size", "method.soft=0.5"),
        ("kd, own size", "method.soft=0.9"),
        ("kd, own size", "method.soft=0.99"),
        ("kd, own size", "method.soft=0.9 method.temperature=8"),
        ("kd, own size", "method.soft=0.9 train.rate=0.05"),
    ),
    "sqakd": (
        ("sqakd", ""),
        ("sqakd", "method.temperature=2"),
        ("sqakd", "method.temperature=8"),
        ("sqakd", "method.gamma=0.1"),
        ("sqakd", "method.gamma=1"),
        ("sqakd", "method.feature=lattice match=[layer1,layer2,layer3]"),
        ("sqakd", "train.rate=0.05"),
        ("sqakd", "train.optimizer=adamw train.rate=0.001 train.weight_decay=0.0005"),
    ),
    "three_phase": (
        ("three_phase", ""),
        ("three_phase", "method.self_studying=0"),
        ("three_phase, own size", ""),
        ("three_phase, own size", "method.weight=3"),
        ("three_phase, own size", "method.self_studying=0"),
        ("three_phase, own size", "method.self_studying=0 method.weight=3"),
        ("three_phase, own size", "method.teacher_rate=1"),
        ("three_phase, own size", "train.rate=0.05"),
    ),
    "dml": (
        ("dml", ""),
        ("dml, own size", ""),
        ("dml, own size", "method.temperature=4"),
        ("dml, own size", "method.weight=3"),
        ("dml, own size", "method.temperature=4 method.weight=3"),
        ("dml, own size", "teachers.four.quantize=w8a8 method.weight=3"),
        ("dml, own size", "teachers.four.quantize=off method.weight=3"),
        ("dml, own size", "train.rate=0.05"),
    ),
    "dgkd": (
        ("dgkd", "method.soft=0.9"),
        ("dgkd, own size", "method.soft=0.5"),
        ("dgkd, own size", "method.soft=0.9"),
        ("dgkd, own size", "method.soft=0.9 method.stochastic=none"),
        ("dgkd, own size", "method.soft=0.9 method.labels_per_guide=false"),
        ("dgkd, own size", "method.soft=0.9 method.student_share=1"),
        ("dgkd, own size", "method.soft=0.9 method.temperature=8"),
        ("dgkd, own size", "method.soft=0.9 train.rate=0.05"),
    ),
    "ffcl": (
        ("ffcl", "method.response=3 method.feature=0"),
        ("ffcl, own size", "method.response=3 method.feature=0"),
        ("ffcl, own size", "method.response=3 method.feature=0.1"),
        ("ffcl, own size", "method.response=10 method.feature=0"),
        ("ffcl, own size", "method.response=10 method.feature=0 method.ramp=0"),
        ("ffcl, own size", "method.response=10 method.feature=0 method.ramp=0 method.temperature=4"),
        ("ffcl, own size", "method.response=10 method.fused=3 method.feature=0 method.ramp=0"),
        ("ffcl, own size", "method.response=10 method.feature=0 method.ramp=0 teachers.partner.quantize=w8a8"),
    ),
    "ctkd": (
        ("ctkd, own size", "method.attention=100"),
        ("ctkd, own size, both trained", "method.attention=100"),
        ("ctkd, own size, both trained", "method.attention=1000"),
        ("ctkd, own size, both trained", "method.attention=10"),
        ("ctkd, own size, both trained", "method.attention=100 method.imitation_weight=3"),
        ("ctkd, own size, both trained", "method.attention=100 method.imitation_weight=10"),
        (
            "ctkd, own size, both trained",
            "method.attention=100 method.imitation_weight=3 teachers.scratch.quantize=w8a8",
        ),
        ("ctkd, own size, both trained", "method.attention=100 method.imitation_weight=3 method.temperature=8"),
    ),
    "atsc": (
        ("atsc", f"{ATSC} {FINER}"),
        ("atsc, own size", ATSC),
        ("atsc, own size", f"{ATSC} {FINER}"),
        ("atsc, own size", "method.labels=0.5 method.soft=2 method.feature=0.1 method.reduce=1"),
        ("atsc, own size", "method.labels=0.5 method.soft=0.5 method.feature=0.02 method.reduce=1"),
        ("atsc, own size", f"{ATSC} train.rate=0.05"),
        ("atsc, own size", f"{ATSC} teachers.teacher.quantize=off"),
        ("atsc, own size, two teachers", f"{ATSC} {FINER}"),
    ),
    "cmtkd": (
        ("cmtkd", PUBLISHED),
        ("cmtkd, large teachers", OWN),
        ("cmtkd", OWN),
        ("cmtkd", f"{COMBINED} method.alpha=0.3"),
        ("cmtkd", f"{COMBINED} method.alpha=1"),
        ("cmtkd", f"{OWN} method.temperature=8"),
        ("cmtkd", f"{OWN} method.feature=hint"),
        ("cmtkd", f"{OWN} teachers.eight.quantize=off"),
    ),
}
"""Row and overrides of each setting, a method at a time; every setting of CMT-KD keeps all of its parts."""

TRIALS: dict[str, tuple[str, ...]] = {
    "kd, own size": ("method.soft=0.9 train.mixup=0.4",),
    "cmtkd": (
        f"{COMBINED} method.alpha=0.02",
        f"{OWN} method.beta=3",
        f"{OWN} train.rate=0.05",
        f"{OWN} method.feature=hint method.gamma=10",
        f"{OWN} teachers.six.quantize=off",
        f"{OWN} teachers.four.quantize=w3a3",
        f"{OWN} method.feature=none method.importance=uniform",
        f"{OWN} method.temperature=2",
        f"{OWN} method.teachers=frozen",
        f"{OWN} method.exchange=false",
        f"{OWN} method.gamma=1000",
        f"{COMBINED} method.alpha=1 method.gamma=1000",
    ),
    "cmtkd, large teachers": (
        PUBLISHED,
        "method.alpha=0.1 method.beta=1 method.mutual=student",
        f"{OWN} method.teachers=frozen",
    ),
    "cmtkd, three starts": (
        OWN,
        f"{OWN} method.exchange=false",
        f"{OWN} method.exchange=false method.feature=none method.importance=uniform",
    ),
    "ctkd": ("method.attention=100",),
    "ffcl, own size": ("method.response=3",),
    "atsc": ("method.labels=1",),
    "atsc, own size": (
        "method.labels=1",
        "method.labels=0.1 method.soft=0.9",
        "method.labels=0.1 method.soft=0.9 method.feature=0.1",
        "method.labels=0.1 method.soft=0.9 method.feature=0.1 method.reduce=1",
        "method.labels=0.1 method.soft=0.9 method.reduce=1",
        "method.labels=0.3 method.soft=3 method.feature=0.1 method.reduce=1",
    ),
}
"""Settings of each row that are not in its search."""
