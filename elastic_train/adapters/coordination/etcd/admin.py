"""What an operator does to an etcd cluster: status, compaction, alarms, members, users and roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elastic_train.adapters.coordination.etcd import endpoints as rpc
from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.ranges import end_of_prefix, start_of_prefix
from elastic_train.adapters.coordination.etcd.transport import Refused, Transport


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What one member says of itself. `leads`: it is the leader; `has_leader`: it knows of one."""

    endpoint: str
    version: str
    database_nbytes: int
    leads: bool
    has_leader: bool
    problems: tuple[str, ...]


class EtcdAdmin:
    """Administers a cluster through a client's transport.

    Every method raises CoordinationUnavailable when nobody answers, CoordinationDenied without the permission (with
    authentication on, only ``root`` has most), and ConfigurationError when etcd cannot do what is asked.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def status(self, endpoint: str) -> MemberStatus:
        """Ask one member, by its ``host:port``, how it is; once."""
        member = next(member for member in self._transport.pool.endpoints if member.address == endpoint)
        try:
            answer = self._transport.call_endpoint(member, rpc.STATUS, pb.StatusRequest())
        except Refused as refusal:
            raise refusal.translated() from refusal
        return MemberStatus(
            endpoint,
            answer.version,
            answer.dbSize,
            leads=bool(answer.leader) and answer.leader == answer.header.member_id,
            has_leader=bool(answer.leader),
            problems=tuple(answer.errors),
        )

    def members(self) -> dict[str, tuple[str, ...]]:
        """Return each member's name and the client URLs that it advertises."""
        answer = self._call(rpc.MEMBERS, pb.MemberListRequest(linearizable=True))
        return {member.name: tuple(member.clientURLs) for member in answer.members}

    def compact(self, revision: int) -> None:
        """Forget the history before a revision, and free its space for reuse."""
        self._call(rpc.COMPACT, pb.CompactionRequest(revision=revision, physical=True))

    def count(self, prefix: str) -> int:
        """Return how many keys there are below a prefix, this client's own included."""
        start, end = start_of_prefix(prefix.encode()), end_of_prefix(prefix.encode())
        return int(self._call(rpc.RANGE, pb.RangeRequest(key=start, range_end=end, count_only=True)).count)

    def alarms(self) -> tuple[str, ...]:
        """Return the alarms that are raised: NOSPACE, CORRUPT."""
        answer = self._call(rpc.ALARM, pb.AlarmRequest(action=pb.AlarmRequest.GET))
        return tuple(sorted({pb.AlarmType.Name(alarm.alarm) for alarm in answer.alarms}))

    def set_space_alarm(self, *, raised: bool) -> None:
        """Raise the NOSPACE alarm, as a full database does, or take it back."""
        for member in self._call(rpc.MEMBERS, pb.MemberListRequest()).members:
            action = pb.AlarmRequest.ACTIVATE if raised else pb.AlarmRequest.DEACTIVATE
            self._call(rpc.ALARM, pb.AlarmRequest(action=action, memberID=member.ID, alarm=pb.NOSPACE))

    def add_user(self, name: str, password: str, *, prefix: str | None = None) -> None:
        """Add a user who may do everything below a prefix (a role of the user's name), or with None nothing yet."""
        self._call(rpc.USER_ADD, pb.AuthUserAddRequest(name=name, password=password, options=pb.UserAddOptions()))
        if prefix is None:
            return
        start = prefix.encode()
        everything = pb.Permission(permType=pb.Permission.READWRITE, key=start, range_end=end_of_prefix(start))
        self._call(rpc.ROLE_ADD, pb.AuthRoleAddRequest(name=name))
        self._call(rpc.ROLE_GRANT_PERMISSION, pb.AuthRoleGrantPermissionRequest(name=name, perm=everything))
        self._call(rpc.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user=name, role=name))

    def change_password(self, name: str, password: str) -> None:
        """Change a password; the user's tokens are void at once."""
        self._call(rpc.USER_CHANGE_PASSWORD, pb.AuthUserChangePasswordRequest(name=name, password=password))

    def enable_authentication(self, root_password: str) -> None:
        """Add ``root`` and let nobody in from now on without a password."""
        self._call(
            rpc.USER_ADD, pb.AuthUserAddRequest(name="root", password=root_password, options=pb.UserAddOptions())
        )
        self._call(rpc.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user="root", role="root"))
        self._call(rpc.AUTH_ENABLE, pb.AuthEnableRequest())

    def _call(self, method: rpc.Method, request: Any) -> Any:
        try:
            return self._transport.call(method, request)
        except Refused as refusal:
            raise refusal.translated() from refusal
