"""Adds up what many simulated jobs showed."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from elastic_train.testing.simulation.job import Report


class Tally:
    """Sums and extremes over jobs, and the processor time they took."""

    def __init__(self) -> None:
        self.jobs = 0
        self.violations = 0
        self.faults: Counter[str] = Counter()
        self._events = 0
        self._commits = 0
        self._worlds = 0
        self._simulated_s = 0.0
        self._longest_resume_s = 0.0
        self._most_worlds_per_fault = 0.0
        self._began_s = time.process_time()

    def add(self, report: Report) -> None:
        """Count one job."""
        self.jobs += 1
        self.violations += report.violation is not None
        self.faults += report.faults
        self._events += report.events
        self._commits += report.commits
        self._worlds += report.worlds
        self._simulated_s += report.simulated_s
        self._longest_resume_s = max(self._longest_resume_s, report.resumed_s)
        self._most_worlds_per_fault = max(self._most_worlds_per_fault, report.worlds / max(1, report.faults.total()))

    def as_dict(self) -> dict[str, Any]:
        """Return the sums, for JSON."""
        cpu_s = time.process_time() - self._began_s
        return {
            "jobs": self.jobs,
            "violations": self.violations,
            "faults": self.faults.total(),
            "events": self._events,
            "committed_steps": self._commits,
            "worlds": self._worlds,
            "simulated_hours": round(self._simulated_s / 3600, 3),
            "cpu_s": round(cpu_s, 2),
            "faults_per_core_minute": round(self.faults.total() / cpu_s * 60),
            "longest_resume_s": round(self._longest_resume_s, 2),
            "most_worlds_per_fault": round(self._most_worlds_per_fault, 3),
            "faults_by_kind": dict(self.faults.most_common()),
        }
