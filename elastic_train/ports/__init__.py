"""The ports: what elastic_train needs of the world, and what an adapter must promise.

Each port is a Protocol; adapters live in ``adapters/<port>/<technology>.py`` and translate whatever
their library raises into ``elastic_train.errors``. One conformance suite runs on every adapter of a port.
"""

from elastic_train.ports.coordination import (
    Change,
    Changes,
    Coordination,
    Delete,
    Guard,
    KeyValue,
    Lease,
    Put,
    Snapshot,
    Watch,
)
from elastic_train.ports.framework import (
    DeterministicEngine,
    DeterministicFramework,
    Exchange,
    Formation,
    Framework,
    Group,
    StepEngine,
    StepPlan,
)
from elastic_train.ports.launcher import (
    Launcher,
    LauncherSink,
    WorkerExited,
    WorkerStarted,
)
from elastic_train.ports.reading import (
    HasLoader,
    Loader,
    LoaderSettings,
    Piece,
    ReadPiece,
)

__all__ = [
    "Change",
    "Changes",
    "Coordination",
    "Delete",
    "DeterministicEngine",
    "DeterministicFramework",
    "Exchange",
    "Formation",
    "Framework",
    "Group",
    "Guard",
    "HasLoader",
    "KeyValue",
    "Launcher",
    "LauncherSink",
    "Lease",
    "Loader",
    "LoaderSettings",
    "Piece",
    "Put",
    "ReadPiece",
    "Snapshot",
    "StepEngine",
    "StepPlan",
    "Watch",
    "WorkerExited",
    "WorkerStarted",
]
