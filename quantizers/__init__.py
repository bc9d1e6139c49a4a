"""How numbers are rounded: schemes, quantizers for Brevitas layers, their insertion and calibration.

    quantized = insert(network, Scheme.parse("w4a8"))      # a copy, as one graph
    calibrate(quantized, batches)                          # scales from data

Imports qkd.errors and qkd.networks.tracing and nothing else of the project.
"""

from __future__ import annotations

from qkd.quantizers.calibrate import calibrate, pretend_calibrated, reestimate_batch_norm
from qkd.quantizers.diagnostics import diagnose
from qkd.quantizers.families import FAMILIES
from qkd.quantizers.hessian import estimate_deltas, needs_delta
from qkd.quantizers.insert import insert, nearest_layer
from qkd.quantizers.inspection import Layer, compile_cores, describe, disabled, quantizers, scales, uncalibrated
from qkd.quantizers.progressive import bit_stages, set_bit_stage
from qkd.quantizers.scheme import Scheme, scheme

__all__ = [
    "FAMILIES",
    "Layer",
    "Scheme",
    "bit_stages",
    "calibrate",
    "compile_cores",
    "describe",
    "diagnose",
    "disabled",
    "estimate_deltas",
    "insert",
    "nearest_layer",
    "needs_delta",
    "pretend_calibrated",
    "quantizers",
    "reestimate_batch_norm",
    "scales",
    "scheme",
    "set_bit_stage",
    "uncalibrated",
]
