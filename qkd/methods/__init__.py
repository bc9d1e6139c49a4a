"""The methods by name. Each is a function ``(setup, *, options) -> Plan``; its keyword-only parameters are its options."""

from __future__ import annotations

from qkd.distill.plan import Method
from qkd.methods.apprentice import apprentice
from qkd.methods.atsc import atsc, simkd
from qkd.methods.bdkd import bdkd
from qkd.methods.ceskd import ceskd
from qkd.methods.cmtkd import cmtkd
from qkd.methods.ctkd import ctkd
from qkd.methods.dcm import dcm
from qkd.methods.dgkd import dgkd, takd
from qkd.methods.dml import dml
from qkd.methods.dpk import dpk
from qkd.methods.ffcl import ffcl, ffl
from qkd.methods.iakd import iakd
from qkd.methods.kd import kd
from qkd.methods.kdcl import kdcl
from qkd.methods.peers import peers
from qkd.methods.pkt import pkt
from qkd.methods.qat import qat
from qkd.methods.speq import speq
from qkd.methods.sqakd import sqakd
from qkd.methods.three_phase import three_phase

METHODS: dict[str, Method] = {
    "qat": qat,
    "kd": kd,
    "cmtkd": cmtkd,
    "ctkd": ctkd,
    "dgkd": dgkd,
    "takd": takd,
    "ffcl": ffcl,
    "ffl": ffl,
    "atsc": atsc,
    "simkd": simkd,
    "dml": dml,
    "kdcl": kdcl,
    "three_phase": three_phase,
    "apprentice": apprentice,
    "sqakd": sqakd,
    "speq": speq,
    "bdkd": bdkd,
    "ceskd": ceskd,
    "dcm": dcm,
    "dpk": dpk,
    "iakd": iakd,
    "peers": peers,
    "pkt": pkt,
}
