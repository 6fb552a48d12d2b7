"""Build obstore's clients from our settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from storage.backends.credentials import Credentials, CredentialSource
from storage.backends.obstore_backend import ClientTimeouts, ObstoreBackend
from storage.backends.settings import REQUEST_TIMEOUT_S, S3Settings, s3_settings, settings_of
from storage.redaction import Scrubber, secrets_in_options


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class GcsSettings:
    """Say how to reach a Google Cloud Storage bucket.

    Attributes:
        endpoint_url: of another server that speaks the protocol.
        service_account_file: path of a key file.
        service_account_json: the content of one.
        token_provider: returns ``{"token": ..., "expires_at": datetime}``; called again when it expires.
        anonymous: do not sign requests.
        request_timeout_s: how long one answer may take.

    Without any of these the application default credentials are used.
    """

    endpoint_url: str | None = None
    service_account_file: str | None = None
    service_account_json: str | None = None
    token_provider: Callable[[], Mapping[str, Any]] | None = None
    anonymous: bool = False
    request_timeout_s: float = REQUEST_TIMEOUT_S


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class AzureSettings:
    """Say how to reach an Azure blob container.

    Attributes:
        account_name: the storage account.
        account_key: its key; or one of ``sas_token`` and the three of a service principal.
        token_provider: returns ``{"token": ..., "expires_at": datetime}``; called again when it expires.
        endpoint_url: of another server that speaks the protocol.
        anonymous: do not sign requests.
        request_timeout_s: how long one answer may take.

    Without credentials, obstore looks in the environment and at the machine's managed identity.
    """

    account_name: str | None = None
    account_key: str | None = None
    sas_token: str | None = None
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    token_provider: Callable[[], Mapping[str, Any]] | None = None
    endpoint_url: str | None = None
    anonymous: bool = False
    request_timeout_s: float = REQUEST_TIMEOUT_S


def open_s3(bucket: str, prefix: str, options: Mapping[str, Any], scrubber: Scrubber) -> ObstoreBackend:
    """Return a backend for an S3 bucket.

    Raises:
        ConfigError: the options are unknown or contradict each other.
    """
    settings = s3_settings(options)
    provider = settings.provider()
    source = CredentialSource(provider, scrubber) if provider is not None else None

    def make(timeouts: ClientTimeouts, held: Credentials | None) -> Any:
        from obstore.store import S3Store

        config = _s3_config(settings, held)
        return S3Store(
            bucket, prefix=prefix or None, config=config, **_client_arguments(timeouts, settings.uses_plain_http)
        )

    return ObstoreBackend(
        make,
        scrubber,
        request_timeout_s=settings.request_timeout_s,
        credentials=source,
        may_ignore_conditions=settings.may_ignore_conditions,
    )


def open_gcs(bucket: str, prefix: str, options: Mapping[str, Any], scrubber: Scrubber) -> ObstoreBackend:
    """Return a backend for a Google Cloud Storage bucket.

    Raises:
        ConfigError: an unknown option.
    """
    settings: GcsSettings = settings_of(GcsSettings, options)
    config = {
        "base_url": settings.endpoint_url,
        "application_credentials": settings.service_account_file,
        "service_account_key": settings.service_account_json,
        "skip_signature": settings.anonymous or None,
    }

    def make(timeouts: ClientTimeouts, held: Credentials | None) -> Any:
        from obstore.store import GCSStore

        del held
        plain = (settings.endpoint_url or "").startswith("http://")
        return GCSStore(
            bucket,
            prefix=prefix or None,
            config=_given(config),
            credential_provider=_learning(settings.token_provider, scrubber),
            **_client_arguments(timeouts, plain),
        )

    return ObstoreBackend(make, scrubber, request_timeout_s=settings.request_timeout_s, by_version=True)


def open_azure(container: str, prefix: str, options: Mapping[str, Any], scrubber: Scrubber) -> ObstoreBackend:
    """Return a backend for an Azure blob container.

    Raises:
        ConfigError: an unknown option.
    """
    settings: AzureSettings = settings_of(AzureSettings, options)
    config = {
        "account_name": settings.account_name,
        "account_key": settings.account_key,
        "sas_key": settings.sas_token,
        "tenant_id": settings.tenant_id,
        "client_id": settings.client_id,
        "client_secret": settings.client_secret,
        "endpoint": settings.endpoint_url,
        "skip_signature": settings.anonymous or None,
    }

    def make(timeouts: ClientTimeouts, held: Credentials | None) -> Any:
        from obstore.store import AzureStore

        del held
        plain = (settings.endpoint_url or "").startswith("http://")
        return AzureStore(
            container,
            prefix=prefix or None,
            config=_given(config),
            credential_provider=_learning(settings.token_provider, scrubber),
            **_client_arguments(timeouts, plain),
        )

    return ObstoreBackend(make, scrubber, request_timeout_s=settings.request_timeout_s)


def _s3_config(settings: S3Settings, held: Credentials | None) -> Any:
    return _given(
        {
            "endpoint": settings.endpoint_url,
            "region": settings.region,
            "access_key_id": held.access_key_id if held else None,
            "secret_access_key": held.secret_access_key if held else None,
            "session_token": held.session_token if held else None,
            "skip_signature": settings.anonymous or None,
            "unsigned_payload": not settings.signs_payload,
            "virtual_hosted_style_request": settings.virtual_hosted_style,
        }
    )


def _client_arguments(timeouts: ClientTimeouts, allow_http: bool) -> Any:
    return {
        "client_options": {**timeouts.options(), "allow_http": allow_http},
        "retry_config": timeouts.retry_config(),
    }


def _given(config: dict[str, Any]) -> Any:
    return {name: value for name, value in config.items() if value is not None}


def _learning(provider: Callable[[], Mapping[str, Any]] | None, scrubber: Scrubber) -> Any:
    """Return the provider, whose tokens the scrubber learns before they are used."""
    if provider is None:
        return None

    def fetch() -> Mapping[str, Any]:
        fetched = provider()
        scrubber.learn(secrets_in_options(fetched))
        return fetched

    return fetch
