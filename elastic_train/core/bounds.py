"""The numbers that the membership core decides by, and the back-off that bounds churn."""

from __future__ import annotations

from dataclasses import dataclass

from elastic_train.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes, patience and limits of one job. All times in seconds."""

    min_workers: int
    max_workers: int
    num_workers: int  # wanted at the start
    capacity: int | None = None  # workers our launcher can run at once; 0: others start them; None: unknown

    ack_timeout_s: float = 1.0  # for an answer to an unplanned proposal or a probe
    ack_timeout_per_worker_s: float = 0.001  # added for every member: one key is rewritten by each
    silence_s: float = 8.0  # for the first answer of several, all silent: then the line to them is suspected first
    coalesce_s: float = 0.02  # after the first loss, for others that come with it
    coalesce_per_worker_s: float = 0.0002  # for every member, if that is longer: a node's loss takes long to arrive
    grace_s: float = 0.3  # after a broken collective, for the loss behind it to become known
    gather_s: float = 3.0  # at the start, once min_workers are ready, for the rest
    join_batch_s: float = 0.2  # for more joiners that are already starting
    join_delay_max_s: float = 2.0  # between two growths, where they follow each other closely
    stable_s: float = 10.0  # a worker or world that lived this long did not die young
    hang_timeout_s: float = 120.0  # a member that computes this long while others wait hangs

    start_timeout_s: float = 60.0  # from launch to the worker's first record
    ready_timeout_s: float = 1800.0  # from there to its first step: user code loads its data in between
    leave_timeout_s: float = 60.0  # for a drained or failed worker to exit by itself
    relaunch_delay_s: float = 0.25  # doubled for every further worker that dies young; the first is replaced at once
    relaunch_delay_max_s: float = 10.0
    max_start_failures: int = 5  # in a row, before a worker was ready, with nothing running
    max_failures: int = 0  # of user code that are answered by another try

    drain_wait_s: float = 30.0  # for a replacement, where a drain has no deadline
    drain_lead_s: float = 10.0  # before a drain's deadline: the switch takes a step
    pause_timeout_s: float | None = None  # below min_workers for this long ends the job
    stop_timeout_s: float = 300.0  # for all to leave after a stop was asked for

    def __post_init__(self) -> None:
        if self.min_workers < 1:
            raise ConfigurationError("min_workers", f"{self.min_workers} is below 1", "Ask for one worker at least.")
        if self.max_workers < self.min_workers:
            raise ConfigurationError(
                "max_workers",
                f"{self.max_workers} is below min_workers={self.min_workers}",
                "Raise max_workers or lower min_workers.",
            )
        problem = self.refusal(self.num_workers)
        if problem:
            raise ConfigurationError("num_workers", problem, "Choose a number within the bounds.")

    def refusal(self, workers: int) -> str:
        """Return why this many workers may not be wanted, or an empty string."""
        if self.min_workers <= workers <= self.max_workers:
            return ""
        return f"{workers} is not within [{self.min_workers}, {self.max_workers}]"

    def coalescing_s(self, members: int) -> float:
        """Return how long to wait for further losses in a world of this many members."""
        return max(self.coalesce_s, members * self.coalesce_per_worker_s)

    def silent_until_s(self, asked_at_s: float, asked: int, missing: int) -> float:
        """Return until when to bear it that nobody at all answers.

        It is likelier that nothing reaches us than that all are gone; losses that the launcher or a lease tells of are
        not waited for here.
        """
        return asked_at_s + self.silence_s if asked == missing > 1 else asked_at_s

    def acknowledge_s(self, members: int) -> float:
        """Return how long to wait for an answer from this many members."""
        return self.ack_timeout_s + members * self.ack_timeout_per_worker_s


@dataclass(frozen=True, slots=True)
class Backoff:
    """Counts bad ends in a row, so that each further try waits longer.

    What began before the last counted end belongs to the same blow (a node takes all its workers with it, one bug
    raises in every worker) and is not counted again.
    """

    count: int = 0
    last_s: float = float("-inf")

    def again(self, at_s: float, began_s: float) -> Backoff:
        """Count an end at `at_s` of something that began at `began_s`."""
        return Backoff(self.count + 1, at_s) if began_s >= self.last_s else self

    def after_quiet(self, at_s: float, quiet_s: float) -> Backoff:
        """Forget everything if nothing was counted for `quiet_s`."""
        return Backoff() if self.count and at_s - self.last_s > quiet_s else self

    def delay_s(self, base_s: float, limit_s: float) -> float:
        """Return how long to wait after the last end: 0, base, 2 base, 4 base, ... up to a limit."""
        if self.count <= 1:
            return 0.0
        return min(limit_s, base_s * 2.0 ** min(self.count - 2, 32))
