"""Name a failure by the HTTP status and error code of the answer, the same for every client."""

from __future__ import annotations

from storage.errors import (
    AlreadyExists,
    BackendError,
    BucketNotFound,
    CredentialsExpired,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RangeNotSatisfiable,
    RequestTimeout,
    StorageError,
    StoreFull,
    Throttled,
    TransientError,
)

_BY_CODE: dict[str, type[StorageError]] = {
    "NoSuchKey": NotFound,
    "BlobNotFound": NotFound,
    "NoSuchBucket": BucketNotFound,
    "ContainerNotFound": BucketNotFound,
    "SlowDown": Throttled,
    "ServiceUnavailable": Throttled,
    "ServerBusy": Throttled,
    "Throttling": Throttled,
    "ThrottlingException": Throttled,
    "RequestLimitExceeded": Throttled,
    "TooManyRequests": Throttled,
    "InternalError": TransientError,
    "OperationAborted": TransientError,
    "OperationTimedOut": RequestTimeout,
    "RequestTimeout": RequestTimeout,
    # Two conditional writes met; S3 says to try again: https://docs.aws.amazon.com/AmazonS3/latest/userguide/
    # conditional-writes.html
    "ConditionalRequestConflict": TransientError,
    "IncompleteBody": TransientError,
    # A part that another part's failure has aborted: the put is tried again from its start.
    "NoSuchUpload": TransientError,
    "BadDigest": TransientError,
    "XAmzContentSHA256Mismatch": TransientError,
    "ExpiredToken": CredentialsExpired,
    "ExpiredTokenException": CredentialsExpired,
    "TokenRefreshRequired": CredentialsExpired,
    "AccessDenied": PermissionDenied,
    "InvalidAccessKeyId": PermissionDenied,
    "SignatureDoesNotMatch": PermissionDenied,
    "InvalidToken": PermissionDenied,
    "PreconditionFailed": PreconditionFailed,
    "InvalidRange": RangeNotSatisfiable,
    "QuotaExceeded": StoreFull,
    "XMinioStorageFull": StoreFull,
}

_BY_STATUS: dict[int, type[StorageError]] = {
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    408: RequestTimeout,
    412: PreconditionFailed,
    416: RangeNotSatisfiable,
    429: Throttled,
    500: TransientError,
    502: TransientError,
    503: Throttled,
    504: RequestTimeout,
    507: StoreFull,
}


def error_for(status: int | None, code: str, *, if_absent: bool = False) -> type[StorageError]:
    """Return the class that says best what an answer means.

    Args:
        status: of the HTTP answer, if known.
        code: the error code in its body, or ``""``.
        if_absent: the request was a put-if-absent.
    """
    named = _BY_CODE.get(code) or _BY_STATUS.get(status or 0, BackendError)
    if named is PreconditionFailed and if_absent:
        return AlreadyExists
    return named
