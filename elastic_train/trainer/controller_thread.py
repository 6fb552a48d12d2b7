"""The control loop in a thread of its own, so that the thread that runs `fit` stays free for signals and the screen."""

from __future__ import annotations

import threading

from elastic_train.controller.loop import Controller
from elastic_train.core.effects import FinishJob


class ControllerThread:
    """Runs a controller to the job's end.

    Args:
        controller: Whose `run` is called.
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._finish: FinishJob | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elastic-controller", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the job; return whether it has come."""
        return self._done.wait(timeout_s)

    def outcome(self) -> FinishJob:
        """Return how the job ended.

        Raises:
            CoordinationError: The controller lost the coordination service for good.
        """
        if self._error is not None:
            raise self._error
        assert self._finish is not None, "the job has not ended"
        return self._finish

    def close(self) -> None:
        """Let the controller go, whatever it is doing, and wait for its thread."""
        if not self._done.is_set():
            self.controller.abandon()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._finish = self.controller.run()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the job, in its own thread
            self._error = error
        finally:
            self._done.set()
