"""Credentials for one store: where they come from, and when they are fetched anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from storage.redaction import Scrubber

#: Fetch new ones this long before the old ones run out.
EARLY_S = 60.0


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Hold an access key; its repr shows nothing of it.

    Attributes:
        expires_at: seconds since 1970 UTC, or None if they last.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None
    expires_at: float | None = None

    def __repr__(self) -> str:
        return "Credentials(***)"

    @property
    def secrets(self) -> list[str]:
        """Return what must not be shown."""
        return [part for part in (self.access_key_id, self.secret_access_key, self.session_token) if part]


CredentialsProvider = Callable[[], Credentials]


class CredentialSource:
    """Ask a provider for credentials when there are none, when they run out, or when told to.

    Args:
        provider: called from any thread; may block.
        scrubber: learns every secret before it is used.
    """

    def __init__(
        self, provider: CredentialsProvider, scrubber: Scrubber, *, now: Callable[[], float] = time.time
    ) -> None:
        self._provider = provider
        self._scrubber = scrubber
        self._now = now
        self._current: Credentials | None = None

    def current(self) -> Credentials:
        """Return credentials that hold for a while yet."""
        held = self._current
        if held is None or (held.expires_at is not None and self._now() >= held.expires_at - EARLY_S):
            return self._fetch()
        return held

    def refresh(self) -> bool:
        """Fetch new credentials; return whether they differ from the refused ones."""
        refused = self._current
        return self._fetch() != refused

    def _fetch(self) -> Credentials:
        fetched = self._provider()
        self._scrubber.learn(fetched.secrets)
        self._current = fetched
        return fetched
