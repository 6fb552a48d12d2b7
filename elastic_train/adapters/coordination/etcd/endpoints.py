"""The members of an etcd cluster as this process reaches them: a channel each, and which one to use next."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.url import Tls
from elastic_train.errors import ConfigurationError

_SUSPECT_S = 5.0
"""A member that failed is passed over for so long, as long as there is another."""

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # retrying is this package's: only it knows what may be sent twice
    ("grpc.use_local_subchannel_pool", 1),  # a closed client's connection must not live on in another's
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),  # etcd drops a client that pings more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", -1),  # a list of many keys is one message
)


@dataclass(frozen=True, slots=True)
class Method:
    """One remote procedure: where it lies and what it answers."""

    path: str
    response: Any  # the message class


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse)
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse)
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse)
# A stream in etcd's definition. Called as unary it sends one message and reads one, which on the wire is a valid stream
# of one, and costs neither a thread nor a stream that must be watched.
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusResponse)
ALARM = Method("/etcdserverpb.Maintenance/Alarm", pb.AlarmResponse)
MEMBERS = Method("/etcdserverpb.Cluster/MemberList", pb.MemberListResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse)
AUTH_ENABLE = Method("/etcdserverpb.Auth/AuthEnable", pb.AuthEnableResponse)
USER_ADD = Method("/etcdserverpb.Auth/UserAdd", pb.AuthUserAddResponse)
USER_CHANGE_PASSWORD = Method("/etcdserverpb.Auth/UserChangePassword", pb.AuthUserChangePasswordResponse)
USER_GRANT_ROLE = Method("/etcdserverpb.Auth/UserGrantRole", pb.AuthUserGrantRoleResponse)
ROLE_ADD = Method("/etcdserverpb.Auth/RoleAdd", pb.AuthRoleAddResponse)
ROLE_GRANT_PERMISSION = Method("/etcdserverpb.Auth/RoleGrantPermission", pb.AuthRoleGrantPermissionResponse)


class Endpoint:
    """One member: its address, its channel and the callables made from it.

    Args:
        address: ``host:port``.
        channel: Its channel.
        owned: Whether `close` closes the channel; a borrowed one is left alone.
    """

    def __init__(self, address: str, channel: grpc.Channel, *, owned: bool = True) -> None:
        self.address = address
        self.suspect_until = 0.0  # monotonic
        self._channel = channel
        self._owned = owned
        self._unary: dict[str, Any] = {}

    def unary(self, method: Method) -> Any:
        """Return the callable of a procedure; made once, because making one costs as much as a call."""
        callable_ = self._unary.get(method.path)
        if callable_ is None:
            callable_ = self._channel.unary_unary(
                method.path, request_serializer=_serialize, response_deserializer=method.response.FromString
            )
            self._unary[method.path] = callable_
        return callable_

    def stream(self, method: Method) -> Any:
        """Return the callable of a procedure that streams both ways."""
        return self._channel.stream_stream(
            method.path, request_serializer=_serialize, response_deserializer=method.response.FromString
        )

    def close(self) -> None:
        """Close the channel, which fails what is under way on it."""
        if self._owned:
            self._channel.close()


def connect_endpoints(addresses: Sequence[str], tls: Tls | None) -> list[Endpoint]:
    """Make the endpoints of a cluster, in a random order so that clients spread over the members.

    Raises:
        ConfigurationError: A TLS file cannot be read.
    """
    credentials = _load_credentials(tls) if tls else None
    endpoints = [Endpoint(address, _open_channel(address, credentials)) for address in addresses]
    random.shuffle(endpoints)
    return endpoints


class EndpointPool:
    """Which member to use: the same one until it fails, then the next that did not fail a moment ago."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoints = tuple(endpoints)
        self._clock = clock
        self._lock = threading.Lock()
        self._current = 0

    def current(self) -> Endpoint:
        """Return the member to use now."""
        return self.endpoints[self._current]

    def prefer(self, address: str) -> None:
        """Use the member at ``host:port`` from now on, until it fails."""
        with self._lock:
            self._current = [endpoint.address for endpoint in self.endpoints].index(address)

    def succeeded(self, endpoint: Endpoint) -> None:
        """Trust a member again that answered."""
        if endpoint.suspect_until:
            endpoint.suspect_until = 0.0

    def failed(self, endpoint: Endpoint) -> None:
        """Pass over a member for a while; does nothing more where another thread has moved on from it already."""
        with self._lock:
            now = self._clock()
            endpoint.suspect_until = now + _SUSPECT_S
            if self.endpoints[self._current] is not endpoint:
                return
            count = len(self.endpoints)
            order = [(self._current + step) % count for step in range(1, count + 1)]
            trusted = (index for index in order if self.endpoints[index].suspect_until <= now)
            self._current = next(trusted, order[0])

    def close(self) -> None:
        """Close every channel."""
        for endpoint in self.endpoints:
            endpoint.close()


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, _CHANNEL_OPTIONS)
    return grpc.secure_channel(address, credentials, _CHANNEL_OPTIONS)


def _load_credentials(tls: Tls) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=tls.ca.read_bytes(),
            private_key=tls.key.read_bytes() if tls.key else None,
            certificate_chain=tls.cert.read_bytes() if tls.cert else None,
        )
    except OSError as error:
        raise ConfigurationError(
            "coordination", f"cannot read TLS file {error.filename!r} ({error.strerror})", "Check path and permissions."
        ) from error
