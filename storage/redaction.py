"""Keep credentials out of messages, logs and reprs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, quote, unquote, urlsplit

MASK = "***"

# Shorter ones would blot out ordinary words.
_MIN_SECRET_LENGTH = 4

_SECRET_NAME = re.compile(
    r"(key|secret|token|passw|pwd|credential|signature|^sig$|sas|auth|cookie|connection_string|bearer)", re.IGNORECASE
)

# These names look secret to the pattern above and are not.
_HARMLESS_NAMES = frozenset({"token_uri", "key_prefix", "sse_kms_key_id"})

_PATTERNS = (
    # user:password@ in a URL
    (re.compile(r"(://)[^/@\s\"']+@"), rf"\1{MASK}@"),
    # signed query parameters and form fields
    (
        re.compile(
            r"((?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId|Signature"
            r"|sig|sas|(?:access_|refresh_|id_|session_)?token|api_?key|password|secret|client_secret)=)[^&\s\"'<>]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    # headers, as in "authorization": "Bearer abc"
    (
        re.compile(
            r"((?:authorization|x-amz-security-token|x-ms-copy-source-authorization|cookie)[\"']?\s*[:=]\s*)"
            r"(?:b?\"[^\"]*\"|b?'[^']*'|[^\r\n]+)",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    # what S3 repeats in a signature error
    (
        re.compile(
            r"(<(AWSAccessKeyId|StringToSign|SignatureProvided|CanonicalRequest|Token-\d)>).*?(</\2>)", re.DOTALL
        ),
        rf"\1{MASK}\3",
    ),
)


class Scrubber:
    """Replace known secrets, and whatever looks like one, in a text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        self.learn(secrets)

    def __repr__(self) -> str:
        return f"<Scrubber of {len(self._secrets)} secrets>"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return what is masked, in all spellings."""
        return self._secrets

    def learn(self, secrets: Iterable[str]) -> None:
        """Know more secrets, in all spellings in which they may turn up."""
        found = set(self._secrets)
        for secret in secrets:
            found |= {secret, quote(secret), quote(secret, safe=""), unquote(secret)}
        # Longest first: one secret may hold another.
        self._secrets = tuple(
            sorted((s for s in found if len(s) >= _MIN_SECRET_LENGTH), key=lambda secret: (-len(secret), secret))
        )

    def scrub(self, text: str) -> str:
        """Return the text without credentials."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


def secrets_in_options(options: Mapping[str, object]) -> list[str]:
    """Return the strings under names that look like those of secrets, at any depth."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += secrets_in_options(value)
        elif isinstance(value, str | bytes) and is_secret_name(name):
            found.append(value if isinstance(value, str) else value.decode(errors="replace"))
    return found


def is_secret_name(name: str) -> bool:
    """Tell whether an option of this name holds a secret."""
    return bool(_SECRET_NAME.search(name)) and name not in _HARMLESS_NAMES


def secrets_in_url(url: str) -> list[str]:
    """Return the user information and the values of the query."""
    parts = urlsplit(url)
    userinfo = parts.netloc.rpartition("@")[0]
    found = [userinfo, *userinfo.split(":", 1)] if userinfo else []
    return [part for part in (*found, *(value for _, value in parse_qsl(parts.query))) if part]


def displayed_url(url: str) -> str:
    """Return the URL without user information, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
