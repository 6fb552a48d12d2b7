"""Masking credentials in texts."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.redaction import Scrubber, displayed_url, is_secret_name, secrets_in_options, secrets_in_url

secrets = st.text(min_size=4, max_size=30).filter(lambda text: "*" not in text and text.strip())


@given(secrets, st.text(), st.text())
def test_a_known_secret_is_never_in_the_result(secret: str, before: str, after: str) -> None:
    scrubber = Scrubber([secret])
    for spelling in (secret, quote(secret), quote(secret, safe="")):
        assert spelling not in scrubber.scrub(before + spelling + after).replace("***", "")


def test_secrets_within_secrets_are_masked() -> None:
    assert Scrubber(["abcd", "abcdefgh"]).scrub("x abcdefgh y abcd z") == "x *** y *** z"


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:hunter22@host/x failed",
        "url=http://h/x?X-Amz-Signature=hunter22&a=b",
        "http://h/x?sig=hunter22",
        "http://h/x?a=b&token=hunter22 more",
        "{'Authorization': 'AWS4-HMAC-SHA256 hunter22'}",
        "authorization: Bearer hunter22",
        "<AWSAccessKeyId>hunter22</AWSAccessKeyId>",
        "<StringToSign>AWS4\nhunter22</StringToSign>",
        "x-amz-security-token:hunter22",
        "client_secret=hunter22",
    ],
)
def test_what_looks_like_a_credential_is_masked_unknown(text: str) -> None:
    scrubbed = Scrubber().scrub(text)
    assert "hunter22" not in scrubbed
    assert "***" in scrubbed


def test_ordinary_text_stays_as_it_is() -> None:
    text = "put 'a/b' in s3://bucket/prefix: HTTP 503 SlowDown: Please reduce your request rate. (3 of 5)"
    assert Scrubber(["k"]).scrub(text) == text


def test_secrets_are_found_in_options_at_any_depth() -> None:
    options = {
        "region": "eu",
        "secret_access_key": "one1",
        "client_kwargs": {"headers": {"Authorization": "two2"}, "endpoint_url": "http://x"},
        "token": b"three3",
        "sas_token": "four4",
        "password": None,
    }
    assert sorted(secrets_in_options(options)) == ["four4", "one1", "three3", "two2"]


def test_secrets_are_found_in_urls_and_not_displayed() -> None:
    url = "sftp://user:pass%20word@host:22/path?sig=abcd#frag"
    assert set(secrets_in_url(url)) == {"user:pass%20word", "user", "pass%20word", "abcd"}
    assert displayed_url(url) == "sftp://host:22/path"


@pytest.mark.parametrize(
    "name", ["key", "aws_secret_access_key", "token", "PASSWORD", "account_key", "sas", "bearer_token"]
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["region", "endpoint_url", "anon", "retries", "bucket", "direct_io"])
def test_names_of_other_options_are_not(name: str) -> None:
    assert not is_secret_name(name)


def test_the_repr_shows_no_secret() -> None:
    assert "hunter" not in repr(Scrubber(["hunter22"]))
