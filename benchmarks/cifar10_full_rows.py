"""CIFAR-10 at full size: the recipe of every row, in the order in which they are run, and what the search tries.

45 000 training images, 5 000 for validation, 10 000 for the test; ResNet-8 as student; float starts of 100 epochs: ResNet-8
of the seeds 0, 1 and 2, ResNet-14 and ResNet-20 of seed 0. The student of seed n begins with the ResNet-8 of seed n, and
so does a teacher that is called its own copy; "three starts" are all three.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1, 2)
STUDENT, MIDDLE, LARGE = "resnet8", "resnet14", "resnet20"
FLOAT_EPOCHS = 100
FLOAT_STARTS = (*((STUDENT, seed) for seed in SEEDS), (MIDDLE, 0), (LARGE, 0))
TRAIN = {"epochs": "30", "optimizer": "sgd", "rate": "0.05", "weight_decay": "0.0001", "ema": "0.999"}
"""What all rows share; rate and average were chosen for plain QAT, on the validation split."""
SEARCH_EPOCHS = 10
LOW, BOTH = ("w2a2",), ("w2a2", "w4a4")


def network(start: str, bits: str = "off") -> str:
    build = start.partition("-")[0]
    return f"{{build: {build}, quantize: {bits}, start_from: <starts>/{start}.safetensors}}"


def teachers(**entries: str) -> str:
    return "teachers={" + ", ".join(f"{name}: {entry}" for name, entry in entries.items()) + "}"


OWN, SECOND, THIRD = (f"{STUDENT}-s<seed{more}>" for more in ("", "+1", "+2"))
BIG, MEDIUM = f"{LARGE}-s0", f"{MIDDLE}-s0"
COPY, LARGER = teachers(float=network(OWN)), teachers(float=network(BIG))
MEAN_OF_THREE = teachers(one=network(OWN), two=network(SECOND), three=network(THIRD))
COPIES = teachers(four=network(OWN, "w4a4"), six=network(OWN, "w6a6"), eight=network(OWN, "w8a8"))
UNLIKE = teachers(four=network(OWN, "w4a4"), six=network(SECOND, "w6a6"), eight=network(THIRD, "w8a8"))
LARGER_UNLIKE = teachers(four=network(BIG, "w4a4"), six=network(BIG, "w6a6"), eight=network(MEDIUM, "w8a8"))
PUBLISHED = "method.alpha=1 method.beta=0.5 method.gamma=100 method.target=min_logit"
MENDED = "method.teach=each method.importance_optimizer=adam method.target=combined method.beta=4"


@dataclass(frozen=True)
class Row:
    """A recipe of the package, the teachers, what the search found, and the schemes of the student."""

    recipe: str
    teachers: str = ""
    tuned: str = ""
    schemes: tuple[str, ...] = LOW

    @property
    def words(self) -> tuple[str, ...]:
        return (self.teachers,) if self.teachers else ()


QAT, KD, CMTKD = "cifar10_qat_w2a2", "cifar10_kd_w2a2", "cifar10_cmtkd_w2a2"


def levels(chosen: str) -> str:
    return f'student.quantize={{"weights":2,"activations":2,"weight_levels":"{chosen}"}}'


ROWS: dict[str, Row] = {
    "qat": Row(QAT, schemes=BOTH),
    "kd, own copy": Row(KD, COPY, "method.soft=0.9", BOTH),
    "kd, three starts": Row(KD, MEAN_OF_THREE, "method.soft=0.9", BOTH),
    "kd, large": Row(KD, LARGER, "method.soft=0.9", BOTH),
    "cmtkd, mended": Row(CMTKD, UNLIKE, MENDED, BOTH),
    "cmtkd, as published": Row(CMTKD, COPIES, PUBLISHED, BOTH),
    "sqakd, lattice": Row("cifar10_sqakd_w2a2", COPY, "method.feature=lattice match=[layer1,layer2,layer3]"),
    "dgkd": Row("cifar10_dgkd_w2a2", teachers(teacher=network(BIG), assistant=network(OWN, "w4a4"))),
    "ctkd": Row("cifar10_ctkd_w2a2", teachers(scratch=network(SECOND, "w4a4"), expert=network(BIG))),
    "atsc": Row("cifar10_atsc_w2a2", teachers(teacher=network(OWN, "w8a8"))),
    "ffcl": Row("cifar10_ffcl_w2a2", teachers(partner=network(SECOND, "w4a4"))),
    "speq": Row("cifar10_speq_w2a2"),
    "qat, three levels": Row(QAT, tuned=levels("narrow")),
    "qat, levels -2 to 1": Row(QAT, tuned=levels("full")),
    "qat, no average": Row(QAT, tuned="train.ema=null"),
    "published, three starts": Row(CMTKD, UNLIKE, PUBLISHED),
    "published, teach each": Row(CMTKD, COPIES, f"{PUBLISHED} method.teach=each"),
    "published, adam": Row(CMTKD, COPIES, f"{PUBLISHED} method.importance_optimizer=adam"),
    "published, lattice": Row(CMTKD, COPIES, f"{PUBLISHED} method.feature=lattice method.gamma=1"),
    "published, target combined": Row(CMTKD, COPIES, f"{PUBLISHED} method.target=combined method.beta=4"),
    "mended, no exchange": Row(CMTKD, UNLIKE, f"{MENDED} method.exchange=false"),
    "mended, prepared": Row(CMTKD, UNLIKE, f"{MENDED} method.prepare=0.3"),
    "mended, prepared, frozen": Row(CMTKD, UNLIKE, f"{MENDED} method.prepare=0.3 method.teachers=frozen"),
    "mended, lattice": Row(CMTKD, UNLIKE, f"{MENDED} method.feature=lattice method.gamma=1"),
    "mended, large": Row(CMTKD, LARGER_UNLIKE, MENDED),
}
SEARCH: dict[str, tuple[str, ...]] = {
    "qat": (
        *(f"train.rate={rate} train.ema={ema}" for rate in (0.02, 0.05, 0.1) for ema in ("null", 0.999)),
        *(levels(chosen) for chosen in ("narrow", "full")),
    ),
}
SCHEMES = BOTH
