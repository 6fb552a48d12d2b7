"""The generators that user code draws random numbers from: torch's, numpy's, Python's."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def seed_generators(seed: int) -> None:
    """Seed them all."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed() looks for every kind of device: 100 times the cost
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    numpy = _numpy()
    if numpy is not None:
        numpy.random.seed(seed % (1 << 32))


class SavedGenerators:
    """Where they all stood at one moment."""

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self._python = random.getstate()
        numpy = _numpy()
        self._numpy = numpy.random.get_state() if numpy is not None else None

    def restore(self) -> None:
        """Put them back there."""
        torch.default_generator.set_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
        random.setstate(self._python)
        numpy = _numpy()
        if numpy is not None and self._numpy is not None:
            numpy.random.set_state(self._numpy)


def _numpy() -> Any:
    return sys.modules.get("numpy")
