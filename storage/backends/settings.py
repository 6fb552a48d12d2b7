"""What a cloud store needs to know, under one set of names for every client."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.backends.credentials import Credentials, CredentialsProvider
from storage.errors import ConfigError

#: How long one answer may take before the request is tried again.
REQUEST_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class S3Settings:
    """Say where an S3 bucket is and how to sign for it; the repr shows no secret.

    Attributes:
        endpoint_url: of a server that is not AWS; ``http://`` only if you trust the network.
        region: None for the client's default.
        access_key_id: with ``secret_access_key`` and perhaps ``session_token``, fixed credentials.
        credentials: fetches credentials instead, again when they expire or are refused as expired.
        profile: of the AWS configuration files, read by botocore.
        anonymous: do not sign requests.
        unsigned_payload: leave the body out of the signature, which saves its SHA-256. None: over TLS,
            which protects the body, but not over plain HTTP.
        virtual_hosted_style: put the bucket into the host name.
        trust_conditions: believe a server that is not AWS that it keeps the conditions of puts, without trying.
        request_timeout_s: how long one answer may take.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    credentials: CredentialsProvider | None = None
    profile: str | None = None
    anonymous: bool = False
    unsigned_payload: bool | None = None
    virtual_hosted_style: bool = False
    trust_conditions: bool = False
    request_timeout_s: float = REQUEST_TIMEOUT_S

    def __post_init__(self) -> None:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ConfigError("access_key_id and secret_access_key come together")
        sources = [self.access_key_id, self.credentials, self.profile, self.anonymous or None]
        if sum(source is not None for source in sources) > 1:
            raise ConfigError("choose one of access_key_id, credentials, profile and anonymous")
        if self.request_timeout_s <= 0:
            raise ConfigError("request_timeout_s is positive")

    def __repr__(self) -> str:
        return f"S3Settings(endpoint_url={self.endpoint_url!r}, region={self.region!r}, ***)"

    @property
    def signs_payload(self) -> bool:
        """Tell whether requests sign their body."""
        if self.unsigned_payload is not None:
            return not self.unsigned_payload
        return self.uses_plain_http

    @property
    def uses_plain_http(self) -> bool:
        """Tell whether the connection is not encrypted."""
        return (self.endpoint_url or "").startswith("http://")

    @property
    def may_ignore_conditions(self) -> bool:
        """Tell whether it is to be tried that the server keeps conditions; AWS does."""
        return self.endpoint_url is not None and not self.trust_conditions

    def provider(self) -> CredentialsProvider | None:
        """Return what yields credentials, or None if the client is to find them by itself."""
        if self.credentials is not None:
            return self.credentials
        if self.access_key_id is not None and self.secret_access_key is not None:
            fixed = Credentials(self.access_key_id, self.secret_access_key, self.session_token)
            return lambda: fixed
        if self.profile is not None:
            return botocore_provider(self.profile)
        return None


def s3_settings(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> S3Settings:
    """Return the settings in the options, and where they say nothing in the environment.

    Raises:
        ConfigError: an unknown option, or options that contradict each other.
    """
    merged = {name: value for name, value in options.items() if value is not None}
    merged.setdefault("endpoint_url", environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"))
    merged.setdefault("region", environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"))
    if not {"access_key_id", "credentials", "profile", "anonymous"} & merged.keys():
        if "AWS_ACCESS_KEY_ID" in environ:
            merged["access_key_id"] = environ["AWS_ACCESS_KEY_ID"]
            merged["secret_access_key"] = environ.get("AWS_SECRET_ACCESS_KEY")
            merged["session_token"] = environ.get("AWS_SESSION_TOKEN")
        elif profile := environ.get("AWS_PROFILE") or _default_profile(environ):
            merged["profile"] = profile
    settings: S3Settings = settings_of(S3Settings, merged)
    return settings


def settings_of(kind: type[Any], options: Mapping[str, Any]) -> Any:
    """Make settings of options.

    Raises:
        ConfigError: an unknown option; its value is not shown.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"unknown options {unknown}; known are {sorted(known)}")
    return kind(**options)


def botocore_provider(profile: str) -> CredentialsProvider:
    """Return a provider that reads the AWS configuration files as the AWS tools do."""

    def fetch() -> Credentials:
        try:
            from botocore.exceptions import BotoCoreError
            from botocore.session import Session
        except ModuleNotFoundError:
            raise ConfigError(
                "the AWS profile is read by botocore: pip install 'elastic-train[s3]', or set AWS_ACCESS_KEY_ID"
            ) from None
        try:
            found = Session(profile=profile).get_credentials()
        except BotoCoreError as error:
            found, problem = None, type(error).__name__
        else:
            problem = "it holds none"
        if found is None:
            raise ConfigError(f"no credentials in the AWS profile {profile!r}: {problem}")
        frozen = found.get_frozen_credentials()
        expires = getattr(found, "_expiry_time", None)  # public nowhere
        return Credentials(
            frozen.access_key, frozen.secret_key, frozen.token, expires.timestamp() if expires is not None else None
        )

    return fetch


def _default_profile(environ: Mapping[str, str]) -> str | None:
    """Return ``"default"`` if the AWS configuration files exist, which obstore does not read."""
    home = Path(environ.get("HOME", "~")).expanduser()
    credentials = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE", home / ".aws" / "credentials"))
    return "default" if credentials.is_file() else None
