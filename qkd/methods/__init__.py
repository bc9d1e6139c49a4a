"""The methods, by name. Each is a function ``(cast, *, options) -> Plan``; its keyword-only parameters are its options."""

from __future__ import annotations

from qkd.methods.cmtkd import cmtkd
from qkd.methods.kd import kd
from qkd.methods.qat import qat
from qkd.plan import Method

METHODS: dict[str, Method] = {"qat": qat, "kd": kd, "cmtkd": cmtkd}
