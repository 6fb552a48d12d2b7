"""etcd URLs: what is understood, what is refused, and that a password never shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.etcd.url import EtcdAddress, Tls, parse_etcd_url
from elastic_train.errors import ConfigurationError

CANARY = "canary-3f0b"


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("etcd://a", ("a:2379",)),
        ("etcd://a/", ("a:2379",)),
        ("etcd://a:1,b,10.0.0.1:65535", ("a:1", "b:2379", "10.0.0.1:65535")),
        ("etcd://[::1],[fe80::1]:4", ("[::1]:2379", "[fe80::1]:4")),
    ],
)
def test_hosts_and_ports_are_read(url: str, endpoints: tuple[str, ...]) -> None:
    assert parse_etcd_url(url).endpoints == endpoints


def test_credentials_may_hold_any_character_when_quoted() -> None:
    address = parse_etcd_url("etcd://us%2Fer:p%40ss%3Aw%25rd@a,b")
    assert (address.user, address.password, address.endpoints) == ("us/er", "p@ss:w%rd", ("a:2379", "b:2379"))


def test_tls_files_are_read(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    ca, cert, key = (tmp_path / name for name in ("ca", "cert", "key"))
    assert parse_etcd_url(f"etcd://a/?ca={ca}").tls == Tls(ca)
    assert parse_etcd_url(f"etcd://a?ca={ca}&cert={cert}&key={key}").tls == Tls(ca, cert, key)


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ("a:0", "port"),
        ("a:65536", "port"),
        ("a:http", "port"),
        ("a,,b", "empty"),
        ("", "empty"),
        ("::1", "IPv6"),
        ("a/jobs", "path"),
        ("a/?tls=yes", "tls"),
        ("a/?ca=/nowhere/ca.pem", "ca.pem"),
        ("a/?cert=x&key=y", "without ca"),
        ("a/?ca=x&cert=y", "only one"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason_and_without_the_password(rest: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        parse_etcd_url(f"etcd://user:{CANARY}@{rest}")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("who", [f"{CANARY}@", f":{CANARY}@", f"{CANARY}:@", "@"])
def test_half_a_pair_of_credentials_is_refused(who: str) -> None:
    with pytest.raises(ConfigurationError, match="user:password") as caught:
        parse_etcd_url(f"etcd://{who}a")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("url", [f"redis://user:{CANARY}@a", f"{CANARY}", f"user:{CANARY}@host:2379", "", "://a"])
def test_an_unknown_scheme_is_refused_saying_what_is_known_and_nothing_of_the_rest(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"etcd://.*memory://") as caught:
        connect(url)
    assert CANARY not in str(caught.value)


def test_neither_repr_nor_str_of_an_address_shows_credentials() -> None:
    address = parse_etcd_url(f"etcd://{CANARY}-user:{CANARY}@a")
    assert CANARY not in f"{address!r} {address} {[address]}"


hosts = st.from_regex(r"[a-z][a-z0-9.-]{0,10}:[1-9][0-9]{0,3}", fullmatch=True)


@given(st.lists(hosts, min_size=1, max_size=3), st.none() | st.tuples(st.text(min_size=1), st.text(min_size=1)))
def test_an_address_survives_the_way_through_its_url(endpoints: list[str], who: tuple[str, str] | None) -> None:
    address = EtcdAddress(tuple(endpoints), *(who or (None, None)))
    assert parse_etcd_url(address.to_url()) == address
