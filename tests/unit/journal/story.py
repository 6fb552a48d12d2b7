"""A job's life as its participants would journal it: workers come and go, are lost in mid-step, are all lost."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from elastic_train.core.data import BatchPlan, indices_crc
from elastic_train.journal.reader import Record

PLANS = {
    "train": BatchPlan(dataset_size=50, global_batch_size=16, logical_shards=6, data_epochs=3, seed=7),
    "tune": BatchPlan(dataset_size=13, global_batch_size=8, logical_shards=6, data_epochs=1, seed=1, drop_last=True),
}


def program() -> list[tuple[str, int | None]]:
    """Return what the job commits, in order: (loop, step), or (evaluation, None)."""
    result: list[tuple[str, int | None]] = []
    for step in range(PLANS["train"].total_steps):
        result.append(("train", step))
        if step % 4 == 3:
            result.append((f"evaluation-{step}", None))
    return result + [("tune", step) for step in range(PLANS["tune"].total_steps)]


def changed(record: Record, **fields: Any) -> Record:
    """Return the record with other fields."""
    return Record(
        record.t,
        record.wall,
        record.kind,
        record.source,
        MappingProxyType({**record.fields, **fields}),
        record.path,
        record.line,
    )


@dataclass
class Story:
    """Tells a job's life under seeded churn; `records` is what its journals hold."""

    seed: int
    churn: float = 0.3
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._program = program()
        self._version = 0
        self._members: list[str] = []
        self._workers = 0
        self._epochs = 0
        self._fence = 10
        self._saved = 0

    def tell(self) -> list[Record]:
        """Let the job run to its end."""
        while self._version < len(self._program):
            self._form()
            while self._version < len(self._program):
                if self._random.random() < self.churn:
                    self._disturb()
                    break
                self._transact(self._members)
                if self._random.random() < 0.2:
                    self._saved = self._version
        return self.records

    def _note(self, source: str, kind: str, **fields: Any) -> None:
        at = float(len(self.records))
        path = Path(f"{source}.jsonl")
        line = 1 + sum(record.source == source for record in self.records)
        self.records.append(Record(at, at, kind, source, MappingProxyType(fields), path, line))

    def _form(self) -> None:
        """Form a world of the survivors and some newcomers."""
        room = 6 - len(self._members)
        newcomers = self._random.randint(0 if self._members else 1, room)
        for _ in range(newcomers):
            self._workers += 1
            self._members.append(f"w{self._workers}")
        self._epochs += self._random.randint(1, 3)
        self._fence += self._random.randint(1, 5)
        told = {"members": tuple(self._members), "cause": "join", "reason": "", "change_s": 0.1}
        self._note("controller", "world_sealed", membership_epoch=self._epochs, fence=self._fence, **told)
        for rank, member in enumerate(self._members):
            self._note(
                member,
                "group_formed",
                membership_epoch=self._epochs,
                rank=rank,
                world_size=len(self._members),
                fence=self._fence,
                form_s=0.02,
            )

    def _transact(self, committers: list[str]) -> None:
        """Let all members take part in the next transaction, and `committers` commit it."""
        name, step = self._program[self._version]
        shares = {}
        if step is not None:
            plan = PLANS[name]
            for rank, member in enumerate(self._members):
                share = shares[member] = plan.share(step, rank, len(self._members))
                self._note(
                    member,
                    "step_read",
                    membership_epoch=self._epochs,
                    loop=name,
                    step=step,
                    version=self._version,
                    data_epoch=share.data_epoch,
                    shards=share.shards,
                    samples=share.samples,
                    indices_crc=indices_crc(plan.indices(share.data_epoch, share.start, share.stop)),
                )
        for member in committers:
            if step is None:
                told: dict[str, Any] = {"name": name, "samples": 9, "metrics": {"loss": 0.5}}
                kind = "evaluation_committed"
            else:
                share = shares[member]
                counted = {"samples": share.samples, "global_samples": share.global_samples}
                told = {"loop": name, "step": step, **counted, "metrics": {}, "step_s": 0.01}
                kind = "step_committed"
            self._note(member, kind, membership_epoch=self._epochs, version=self._version + 1, **told)
        if committers:
            self._version += 1

    def _disturb(self) -> None:
        """Lose, drain or add workers: between two transactions, or in the middle of one."""
        happening = self._random.choice(["join", "loss", "loss in a step", "all are lost"])
        if happening == "join":
            return
        victims = self._random.sample(self._members, self._random.randint(1, len(self._members)))
        survivors = [member for member in self._members if member not in victims]
        if happening == "all are lost":
            survivors = []
        version = self._version
        if happening == "loss in a step":
            committers = self._random.sample(self._members, self._random.randint(0, len(self._members)))
            self._transact(committers)
            if not set(committers) & set(survivors):
                self._version = version  # whoever had committed it is gone
        self._members = survivors
        if not survivors:
            self._version = self._saved
            self._workers += 1
            self._members = [f"w{self._workers}"]
            if self._saved:
                self._note(self._members[0], "checkpoint_restored", version=self._saved)
