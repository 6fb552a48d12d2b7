"""Help for tests of code that uses a store: a proxy that injects faults, and S3 servers to put behind it."""

from storage.testing.fault_proxy import FaultProxy
from storage.testing.faults import Corrupt, Fault, LoseAnswer, Refuse, Reset, SlowStart, Stall, Truncate
from storage.testing.servers import MotoServer, RcloneServer, S3Server

__all__ = [
    "Corrupt",
    "Fault",
    "FaultProxy",
    "LoseAnswer",
    "MotoServer",
    "RcloneServer",
    "Refuse",
    "Reset",
    "S3Server",
    "SlowStart",
    "Stall",
    "Truncate",
]
