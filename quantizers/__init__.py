"""How numbers are rounded: schemes, quantizers for Brevitas layers, their insertion and calibration.

    quantized = insert(network, Scheme.parse("w4a8"))      # a copy, as one graph
    calibrate(quantized, batches)                          # scales from data

Names are imported when they are first used, so that a scheme can be read without Brevitas. Imports qkd.errors and
qkd.networks.tracing and nothing else of the project.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkd.quantizers.batch_norm_reestimation import reestimate_batch_norm as reestimate_batch_norm
    from qkd.quantizers.calibration import calibrate as calibrate
    from qkd.quantizers.calibration import pretend_calibrated as pretend_calibrated
    from qkd.quantizers.dampening import dampening_distance as dampening_distance
    from qkd.quantizers.dampening import dampens as dampens
    from qkd.quantizers.diagnostics import diagnose as diagnose
    from qkd.quantizers.families import FAMILIES as FAMILIES
    from qkd.quantizers.hessian import estimate_deltas as estimate_deltas
    from qkd.quantizers.hessian import needs_delta as needs_delta
    from qkd.quantizers.insertion import insert as insert
    from qkd.quantizers.insertion import nearest_layer as nearest_layer
    from qkd.quantizers.inspection import Layer as Layer
    from qkd.quantizers.inspection import compile_cores as compile_cores
    from qkd.quantizers.inspection import describe as describe
    from qkd.quantizers.inspection import disabled as disabled
    from qkd.quantizers.inspection import quantizers as quantizers
    from qkd.quantizers.inspection import rounded_layers as rounded_layers
    from qkd.quantizers.inspection import scales as scales
    from qkd.quantizers.inspection import uncalibrated as uncalibrated
    from qkd.quantizers.oscillation import OscillationCounter as OscillationCounter
    from qkd.quantizers.progressive import bit_stages as bit_stages
    from qkd.quantizers.progressive import set_bit_stage as set_bit_stage
    from qkd.quantizers.scheme import Scheme as Scheme

MODULES = {
    "FAMILIES": "families",
    "Layer": "inspection",
    "OscillationCounter": "oscillation",
    "Scheme": "scheme",
    "bit_stages": "progressive",
    "calibrate": "calibration",
    "compile_cores": "inspection",
    "dampening_distance": "dampening",
    "dampens": "dampening",
    "describe": "inspection",
    "diagnose": "diagnostics",
    "disabled": "inspection",
    "estimate_deltas": "hessian",
    "insert": "insertion",
    "nearest_layer": "insertion",
    "needs_delta": "hessian",
    "pretend_calibrated": "calibration",
    "quantizers": "inspection",
    "reestimate_batch_norm": "batch_norm_reestimation",
    "rounded_layers": "inspection",
    "scales": "inspection",
    "set_bit_stage": "progressive",
    "uncalibrated": "inspection",
}
"""Every public name and the module it is in. No module has a public name, which importing it would hide."""
__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
