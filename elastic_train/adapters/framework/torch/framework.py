"""The Framework port for PyTorch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import default_collate

from elastic_train.adapters.framework.torch import PRELOAD
from elastic_train.adapters.framework.torch.engine import TorchStepEngine
from elastic_train.adapters.framework.torch.formation import FormationAttempt
from elastic_train.adapters.framework.torch.generators import seed_generators
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.loading import TorchLoader
from elastic_train.ports import Formation, LoaderSettings, Piece, ReadPiece


class TorchFramework:
    """PyTorch, with collectives of our own over TCP.

    The default process group of torch.distributed is formed too (gloo, also for a world of one), anew for each
    membership epoch, so that user code may use torch.distributed inside a step. It must not keep groups or works of
    it from one membership epoch to the next.

    Args:
        threads: Of torch's intra-op pool in each worker. One by default: a machine's workers share its cores.
        process_group: Whether to form torch's default process group. Without it a world forms in a third of the time.
    """

    name = "torch"
    preload = PRELOAD

    def __init__(self, threads: int = 1, *, process_group: bool = True) -> None:
        self._threads = threads
        self._process_group = process_group
        self._lock = threading.Lock()
        self._attempt: FormationAttempt | None = None

    def prepare_process(self, worker_index: int) -> None:
        """Set the number of threads, and the device where there are any."""
        torch.set_num_threads(self._threads)
        if torch.cuda.is_available():
            torch.cuda.set_device(worker_index % torch.cuda.device_count())

    def make_deterministic(self, seed: int) -> None:
        """Use deterministic kernels only, and seed every generator.

        An operation that has no deterministic kernel then raises RuntimeError and says which it is: a warning would be
        lost among a job's logs, and its result with it.
        """
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        fill: Any = torch.utils.deterministic  # its attributes are not declared
        fill.fill_uninitialized_memory = False  # costs a pass over memory, and changes no result
        seed_generators(seed)

    def arithmetic(self) -> str:
        """Return what else the bits of a result depend on: kind of device, threads, version."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
        return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"

    def collate(self, samples: Sequence[Any]) -> Any:
        """Make a batch of a list of samples, as a DataLoader does."""
        return default_collate(list(samples))

    def open_loader(self, read: ReadPiece, feed: Iterator[Piece], settings: LoaderSettings) -> TorchLoader:
        """Return a loader of the pieces that `feed` gives, on torch's DataLoader."""
        return TorchLoader(read, feed, settings)

    def is_group_error(self, error: Exception) -> bool:
        """Say whether a collective of torch.distributed failed; gloo has no error type of its own."""
        return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))

    def form(self, formation: Formation) -> TorchGroup:
        """Form the group of a world.

        Raises:
            GroupBroken: A member did not come, or `abort_formation` was called.
            UsageError: User code has initialised torch.distributed itself.
        """
        attempt = FormationAttempt(formation, process_group=self._process_group)
        with self._lock:
            self._attempt = attempt
        try:
            return attempt.run()
        finally:
            with self._lock:
                self._attempt = None

    def abort_formation(self) -> None:
        """Make a `form` under way in another thread fail now."""
        with self._lock:
            if self._attempt is not None:
                self._attempt.abort()

    def bind(self, items: Mapping[str, Any]) -> TorchStepEngine:
        """Bind the objects of a TrainState.

        Raises:
            StateNotRestorable: One of them has no state that could be sent or saved; says which.
        """
        return TorchStepEngine(items)
