"""Errors of the storage package; whatever a backend raised arrives as one of these.

::

    StorageError
    ├── ConfigError                 the store cannot be opened as asked
    │   ├── UnknownScheme           no backend serves this URL scheme
    │   └── MissingDependency       the backend's client is not installed
    ├── InvalidKey                  the key is not a valid object name
    ├── CapabilityError             the backend cannot do this safely
    ├── NotFound                    no such object
    │   └── BucketNotFound          no such bucket, container or root
    ├── AlreadyExists               a put with ``if_absent`` lost
    ├── PreconditionFailed          a put with ``if_match`` lost
    ├── RangeNotSatisfiable         the object is shorter than the range asked for
    ├── PermissionDenied            the credentials do not allow this
    │   └── CredentialsExpired      they did once; refreshed and retried if a provider was given
    ├── StoreFull                   no space or quota is left
    ├── StoreClosed                 used after ``close()``
    ├── TransientError              may go away by itself; retried
    │   ├── Throttled               SlowDown, 503, 429; also lowers the concurrency limit
    │   ├── RequestTimeout          one request was not answered in time
    │   ├── ConnectionLost          reset, refused, broken pipe
    │   └── TruncatedBody           fewer bytes came than were announced
    ├── DeadlineExceeded            retries used up the operation's deadline or attempts
    └── BackendError                anything else the backend refused or failed at

No message, attribute, cause or context of these errors holds a credential: the backend's own
exception is never chained, only a scrubbed text of it (``detail``).
"""

from __future__ import annotations


class StorageError(Exception):
    """Report a failed storage operation.

    Attributes:
        operation: the operation that failed (``"put"``), or ``""``.
        store: the scrubbed URL of the store, or ``""``.
        key: the object concerned, or ``""``.
        detail: what went wrong and what to do, scrubbed of credentials.
    """

    summary = "the storage operation failed"

    def __init__(self, detail: str = "", *, operation: str = "", store: str = "", key: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.operation = operation
        self.store = store
        self.key = key

    def locate(self, *, operation: str, store: str, key: str) -> None:
        """Fill in where it happened, keeping what is already known."""
        self.operation = self.operation or operation
        self.store = self.store or store
        self.key = self.key or key

    def __str__(self) -> str:
        place = f"{self.operation or 'storage'}"
        if self.key:
            place += f" {self.key!r}"
        if self.store:
            place += f" in {self.store}"
        text = f"{place}: {self.summary}"
        return f"{text}: {self.detail}" if self.detail else text


class ConfigError(StorageError):
    """Report a store that cannot be opened as asked."""

    summary = "the store cannot be opened"


class UnknownScheme(ConfigError):
    """Report a URL scheme that no backend serves."""

    summary = "no backend serves this URL scheme"


class MissingDependency(ConfigError):
    """Report that the client library of a backend is not installed."""

    summary = "the client library is not installed"


class InvalidKey(StorageError):
    """Report a key that is not a valid object name."""

    summary = "not a valid key"


class CapabilityError(StorageError):
    """Report an operation that this backend cannot do safely."""

    summary = "this backend cannot do this"


class NotFound(StorageError):
    """Report an object that does not exist."""

    summary = "no such object"


class BucketNotFound(NotFound):
    """Report a bucket, container or root that does not exist."""

    summary = "no such bucket"


class AlreadyExists(StorageError):
    """Report that a put-if-absent found an object.

    Attributes:
        maybe_applied: whether an unanswered try of this put may have made an object that was
            replaced or removed before the next try. One that is still there is recognised.
    """

    summary = "the object exists already"
    maybe_applied = False


class PreconditionFailed(StorageError):
    """Report that a put-if-match found another version, or none.

    Attributes:
        maybe_applied: whether an unanswered try of this put may have succeeded and been
            overwritten before the next try. A version that is still there is recognised.
    """

    summary = "the object is not the version expected"
    maybe_applied = False


class RangeNotSatisfiable(StorageError):
    """Report a range that reaches past the end of the object."""

    summary = "the object does not hold this range"


class PermissionDenied(StorageError):
    """Report that the credentials do not allow the operation."""

    summary = "permission denied"


class CredentialsExpired(PermissionDenied):
    """Report credentials that have run out."""

    summary = "the credentials have expired"


class StoreFull(StorageError):
    """Report that no space or quota is left."""

    summary = "no space is left"


class StoreClosed(StorageError):
    """Report the use of a store after it was closed."""

    summary = "the store is closed"


class TransientError(StorageError):
    """Report a failure that may go away by itself."""

    summary = "temporarily failed"


class Throttled(TransientError):
    """Report that the store asked to be called less often."""

    summary = "the store is throttling"


class RequestTimeout(TransientError):
    """Report that one request was not answered in time."""

    summary = "the store did not answer in time"


class ConnectionLost(TransientError):
    """Report a connection that was refused, reset or broken."""

    summary = "the connection was lost"


class TruncatedBody(TransientError):
    """Report an answer with fewer bytes than announced."""

    summary = "the answer was cut short"


class DeadlineExceeded(StorageError):
    """Report that the operation did not succeed before its deadline.

    Attributes:
        attempts: how many requests were tried.
        elapsed_s: the time spent.
        maybe_applied: whether a write may have taken effect although no answer came.
        last: the last transient failure seen.
    """

    summary = "gave up"

    def __init__(self, *, attempts: int, elapsed_s: float, maybe_applied: bool, last: TransientError) -> None:
        note = "; the write may have been applied" if maybe_applied else ""
        super().__init__(
            f"after {attempts} attempts in {elapsed_s:.1f} s, the last: {last.summary}: {last.detail}{note}"
        )
        self.attempts = attempts
        self.elapsed_s = elapsed_s
        self.maybe_applied = maybe_applied
        self.last = last

    def __reduce__(self) -> tuple[object, ...]:
        # An exception is pickled by its positional arguments; this one has none.
        return _remake_deadline_exceeded, (self.attempts, self.elapsed_s, self.maybe_applied, self.last), vars(self)


def _remake_deadline_exceeded(
    attempts: int, elapsed_s: float, maybe_applied: bool, last: TransientError
) -> DeadlineExceeded:
    return DeadlineExceeded(attempts=attempts, elapsed_s=elapsed_s, maybe_applied=maybe_applied, last=last)


class BackendError(StorageError):
    """Report a refusal or failure that has no better name."""

    summary = "the backend failed"
