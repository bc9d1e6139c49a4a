"""SPEQ: the network itself, at activation bits drawn at random, is its own teacher (Boo et al., AAAI 2021)."""

from __future__ import annotations

from qkd.distill.imitation import Imitation
from qkd.distill.method_info import published
from qkd.distill.plan import Phase, Plan, Setup, Step
from qkd.distill.taps import Tap
from qkd.distill.targets import one
from qkd.distill.terms import label
from qkd.errors import PlanError
from qkd.options import Positive

VIEW = "{{of: {}, activations: 8, share: 0.5}}"


@published("Boo et al., AAAI 2021", teachers=1, most=1, example=f"{{finer: {VIEW.format('student')}}}")
def speq(setup: Setup, *, weight: Positive = 1.0) -> Plan:
    """The student imitates itself with more activation bits, drawn at random for each layer and batch.

    ``CE + weight (1 - cos(p_T, p_S))``, no gradient through the teacher. The teacher is a view of the student, written
    ``{of: student, activations: 8, share: 0.5}``: the same weights, every quantizer of activations at 8 bits with the
    probability 0.5, else at its own bits; the paper found 0.4 to 0.6 best, and 2 and 8 bits better than a mix of all widths.

    ``weight``: the paper's is not known to us.

    Departures: quantizers are those of the scheme, LSQ by default. Batch norms of the teacher normalise with the statistics of
    the batch and store nothing: which statistics the paper's teacher uses is not known to us.
    """
    (teacher,) = setup.teachers
    seen = setup.tied.get(teacher)
    if seen is None or seen.of != setup.student or seen.activations is None:
        raise PlanError(
            f"speq: {teacher} must be the student itself at other activation bits: write {teacher}: "
            f"{VIEW.format(setup.student)}",
            key="method.needs-view-of-student",
        )
    imitation = Imitation("cosine").term(setup.student, one(Tap(teacher)))
    return Plan((Phase("train", (Step([setup.student], [label(setup.student), imitation * weight]),)),))
