"""Reading the addresses that gloo's members publish."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from elastic_train.adapters.framework.torch.sockets import RankAddress


def published(host_name: bytes, family: int, address: str, port: int, sequences: list[int]) -> bytes:
    """Return the bytes as gloo's `Rank::bytes` lays them out on a little-endian machine."""
    packed = socket.inet_pton(family, address)
    start = struct.pack("=H", family) + struct.pack("!H", port) + (b"" if family == socket.AF_INET else b"\0" * 4)
    sockaddr = (start + packed).ljust(128, b"\0") + struct.pack("=q", -1)
    parts = [struct.pack("=Q", len(host_name)), host_name, struct.pack("=Q", len(sockaddr)), sockaddr]
    return b"".join(parts) + b"".join(struct.pack("=q", number) for number in sequences)


addresses = st.tuples(st.just(socket.AF_INET), st.ip_addresses(v=4).map(str)) | st.tuples(
    st.just(socket.AF_INET6), st.ip_addresses(v=6).map(str)
)


@given(st.binary(max_size=64), addresses, st.integers(0, 65535), st.lists(st.integers(-1, 2**40), max_size=8))
def test_the_listener_and_the_sequence_numbers_are_found(
    host_name: bytes, address: tuple[int, str], port: int, sequences: list[int]
) -> None:
    found = RankAddress.parse(published(host_name, *address, port, sequences))
    assert found is not None
    host, found_port = found.listener
    assert (socket.inet_pton(address[0], host), found_port) == (socket.inet_pton(*address), port)
    assert found.sequences == tuple(sequences)


@given(st.binary(max_size=300))
def test_anything_else_is_not_taken_for_an_address(data: bytes) -> None:
    found = RankAddress.parse(data)
    assert found is None or isinstance(found.listener[1], int)


def test_what_other_backends_store_is_left_alone() -> None:
    assert RankAddress.parse(b"") is None
    assert RankAddress.parse(b"ncclUniqueId") is None
    assert RankAddress.parse(published(b"host", socket.AF_INET, "127.0.0.1", 1, [0])[:-3]) is None
