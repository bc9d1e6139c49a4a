"""Schemes of recipes that were stored before weights of two bits had four levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkd.quantizers import Scheme

STORED = frozenset(
    ("weights", "activations", "family", "first", "last", "sums", "per_channel", "calibration", "overrides")
)
"""The fields that every stored scheme has, of whatever age."""


def at_its_time(scheme: Scheme, fields: Mapping[str, Any]) -> Scheme:
    """The scheme that its fields meant when they were stored.

    A stored recipe has every field that its version knew. One without ``weight_levels`` is from the time when 2-bit weights
    of these families were narrow (three levels), and stays that: a run is never opened on another grid than it was trained
    on. A recipe written by hand, which leaves fields out, has today's defaults.
    """
    old = fields.keys() >= STORED and "weight_levels" not in fields
    return replace(scheme, weight_levels="narrow") if old and scheme.has_levels_to_choose else scheme
