"""A world of one: a group without connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.mesh import Mesh, Wakeup


@pytest.fixture
def alone() -> Iterator[TorchGroup]:
    """Return the group of a world of one."""
    group = TorchGroup(Mesh(0, {}, Wakeup()), None)
    yield group
    group.close()
