"""What a FLOP costs: the op table, and the metered way to touch a target."""

from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import Calibration, Unexplained, calibrate
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable, UnknownOpError, count_flops

__all__ = [
    "Calibration",
    "Ledger",
    "MeteredAccess",
    "OpTable",
    "Unexplained",
    "UnknownOpError",
    "calibrate",
    "count_flops",
]
