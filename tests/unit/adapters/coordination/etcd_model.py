"""As much of etcd as transactions and leases need, and a wire that loses, holds back and repeats what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from elastic_train.adapters.coordination.etcd import endpoints as rpc
from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.failures import Failure
from elastic_train.adapters.coordination.etcd.transport import Refused, Timing
from elastic_train.errors import CoordinationUnavailable

TRIES = 4


@dataclass
class Item:
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class ModelEtcd:
    """Carries out requests one by one, as etcd's documentation says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.revision = 1
        self.items: dict[bytes, Item] = {}
        self.leases: dict[int, float] = {}
        self.applied: list[tuple[bytes, bytes, int]] = []
        """Every key and value put by a user, with its revision, in order."""

    def carry_out(self, method: rpc.Method, request: Any) -> Any:
        """Return the answer to a request."""
        for lease in [lease for lease, end in self.leases.items() if end <= self.now]:
            self._end(lease)
        if method is rpc.GRANT:
            self.leases[request.ID] = self.now + request.TTL
            return pb.LeaseGrantResponse(ID=request.ID, TTL=request.TTL)
        if method is rpc.REVOKE:
            self._end(request.ID)
            return pb.LeaseRevokeResponse()
        assert method is rpc.TXN, method
        return self._transact(request)

    def _transact(self, request: Any) -> Any:
        holds = all(self._compare(compare) for compare in request.compare)
        operations = request.success if holds else request.failure
        puts = [operation.request_put for operation in operations if operation.HasField("request_put")]
        if any(put.lease and put.lease not in self.leases for put in puts):
            raise Refused(Failure.LEASE_NOT_FOUND, "model", "requested lease not found", tries=1)
        if puts:
            self.revision += 1
        return pb.TxnResponse(
            header=pb.ResponseHeader(revision=self.revision),
            succeeded=holds,
            responses=[self._operate(operation) for operation in operations],
        )

    def _compare(self, compare: Any) -> bool:
        item = self.items.get(compare.key)
        if compare.target == pb.Compare.CREATE:
            return bool(compare.create_revision == (item.create_revision if item else 0))
        return bool(compare.mod_revision == (item.mod_revision if item else 0))

    def _operate(self, operation: Any) -> Any:
        if operation.HasField("request_range"):
            item = self.items.get(operation.request_range.key)
            found = [pb.KeyValue(value=item.value, mod_revision=item.mod_revision)] if item else []
            return pb.ResponseOp(response_range=pb.RangeResponse(kvs=found))
        if operation.HasField("request_delete_range"):
            self.items.pop(operation.request_delete_range.key, None)
            return pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse())
        put = operation.request_put
        old = self.items.get(put.key)
        created = old.create_revision if old else self.revision
        self.items[put.key] = Item(put.value, created, self.revision, put.lease)
        if b"/.commits/" not in put.key:
            self.applied.append((put.key, put.value, self.revision))
        return pb.ResponseOp(response_put=pb.PutResponse())

    def _end(self, lease: int) -> None:
        self.leases.pop(lease, None)
        for key in [key for key, item in self.items.items() if item.lease == lease]:
            self.revision += 1
            del self.items[key]


class UnreliableTransport:
    """Stands in for `Transport`: a few tries a call, the fate of each decided by the next word.

    ``ok``: answered. ``lose``: carried out, the answer lost. ``drop``: lost on the way. ``hold``: taken for lost,
    delivered by `deliver_late`. ``late``: deliver what is held back, then as ``drop``.
    """

    def __init__(self, server: ModelEtcd, words: Iterator[str]) -> None:
        self.timing = Timing()
        self._server = server
        self._words = words
        self._held: list[Callable[[], object]] = []

    def call(self, method: rpc.Method, request: Any, **_: object) -> Any:
        return self.call_counting(method, request)[0]

    def call_counting(self, method: rpc.Method, request: Any) -> tuple[Any, int]:
        if method is not rpc.TXN:
            return self._server.carry_out(method, request), 1
        for tried in range(1, TRIES + 1):
            word = next(self._words)
            if word == "late":
                self.deliver_late()
            elif word == "hold":
                self._held.append(lambda: self._server.carry_out(method, request))
            elif word in {"ok", "lose"}:
                answer = self._carry_out(method, request, tried)
                if word == "ok":
                    return answer, tried
        raise CoordinationUnavailable("no answer in the model")

    def deliver_late(self) -> None:
        """Deliver what was held back; nobody hears the answers."""
        held, self._held = self._held, []
        for deliver in held:
            try:
                deliver()
            except Refused:
                continue

    def check_usable(self) -> None:
        """Be usable."""

    def _carry_out(self, method: rpc.Method, request: Any, tried: int) -> Any:
        try:
            return self._server.carry_out(method, request)
        except Refused as refusal:
            raise Refused(refusal.failure, refusal.endpoint, refusal.text, tried) from None


def then_ok(words: Iterable[str]) -> Iterator[str]:
    """Yield the words, then ``ok`` for ever."""
    yield from words
    while True:
        yield "ok"
