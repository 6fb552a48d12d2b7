"""A pluggable object store: one interface, errors and guarantees over files, S3, GCS, Azure and fsspec."""

from storage.backends.credentials import Credentials
from storage.base import Capabilities, ObjectInfo
from storage.errors import (
    AlreadyExists,
    BackendError,
    BucketNotFound,
    CapabilityError,
    ConfigError,
    CredentialsExpired,
    DeadlineExceeded,
    InvalidKey,
    MissingDependency,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    StoreClosed,
    StoreFull,
    TransientError,
    UnknownScheme,
)
from storage.registry import BackendReport, describe_backends, open_store
from storage.retry import RetryPolicy
from storage.store import ObjectStore

__all__ = [
    "AlreadyExists",
    "BackendError",
    "BackendReport",
    "BucketNotFound",
    "Capabilities",
    "CapabilityError",
    "ConfigError",
    "Credentials",
    "CredentialsExpired",
    "DeadlineExceeded",
    "InvalidKey",
    "MissingDependency",
    "NotFound",
    "ObjectInfo",
    "ObjectStore",
    "PermissionDenied",
    "PreconditionFailed",
    "RangeNotSatisfiable",
    "RetryPolicy",
    "StorageError",
    "StoreClosed",
    "StoreFull",
    "TransientError",
    "UnknownScheme",
    "describe_backends",
    "open_store",
]
