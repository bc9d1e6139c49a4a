"""How numbers are rounded: schemes, quantizers for Brevitas layers, their insertion and calibration.

    quantized = insert(network, Scheme.parse("w4a8"))      # a copy, as one graph
    calibrate(quantized, batches)                          # scales from data

Imports qkd.errors and qkd.networks.tracing and nothing else of the project.
"""

from __future__ import annotations

from qkd.quantizers.calibrate import calibrate, pretend_calibrated, reestimate_batch_norm
from qkd.quantizers.diagnostics import alarms
from qkd.quantizers.families import FAMILIES
from qkd.quantizers.hessian import curved, estimate_deltas
from qkd.quantizers.insert import insert, nearest_layer
from qkd.quantizers.inspection import Layer, compile_cores, describe, disabled, quantizers, scales, uncalibrated
from qkd.quantizers.progressive import lower, rungs
from qkd.quantizers.scheme import Scheme, scheme

__all__ = [
    "FAMILIES",
    "Layer",
    "Scheme",
    "alarms",
    "calibrate",
    "compile_cores",
    "curved",
    "describe",
    "disabled",
    "estimate_deltas",
    "insert",
    "lower",
    "nearest_layer",
    "pretend_calibrated",
    "quantizers",
    "reestimate_batch_norm",
    "rungs",
    "scales",
    "scheme",
    "uncalibrated",
]
