"""Translate what obstore raises. It keeps the HTTP status and code only in the text of its errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from storage.backends.http_errors import error_for
from storage.errors import (
    AlreadyExists,
    BackendError,
    ConnectionLost,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RequestTimeout,
    StorageError,
    TruncatedBody,
)
from storage.redaction import Scrubber

T = TypeVar("T")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_MAX_DETAIL = 300

# Looked for in this order in the debugging text: a time-out while a body is read is a time-out. The text also repeats
# the client's settings, such as `retry_timeout`.
_SIGNS: tuple[tuple[re.Pattern[str], type[StorageError]], ...] = (
    (re.compile(r"TimedOut|kind: Timeout|operation timed out|deadline has elapsed"), RequestTimeout),
    (
        re.compile(r"kind: (?:Body|Decode)|IncompleteMessage|UnexpectedEof|end of file before"),
        TruncatedBody,
    ),
    (
        re.compile(
            r"connection|error sending request|dns error|broken pipe|kind: (Connect|Request|Interrupted)",
            re.IGNORECASE,
        ),
        ConnectionLost,
    ),
)

_BY_NAME: dict[str, type[StorageError]] = {
    "AlreadyExistsError": AlreadyExists,
    "PreconditionError": PreconditionFailed,
    "PermissionDeniedError": PermissionDenied,
    "UnauthenticatedError": PermissionDenied,
}


def call_obstore(scrubber: Scrubber, call: Callable[[], T], *, if_absent: bool = False) -> T:
    """Return what the call returns, or raise its error translated, scrubbed and without context.

    Raises:
        StorageError: what obstore's error means.
    """
    from obstore.exceptions import BaseError

    try:
        return call()
    except (BaseError, OSError, ValueError) as error:
        translated = translate(error, scrubber, if_absent=if_absent)
    raise translated


def translate(error: Exception, scrubber: Scrubber, *, if_absent: bool) -> StorageError:
    """Return the storage error that says what obstore's error means."""
    text = str(error)
    status = _STATUS.search(text)
    code = _CODE.search(text)
    if status or code:
        kind = error_for(int(status[1]) if status else None, code[1] if code else "", if_absent=if_absent)
    else:
        kind = BackendError
    # A failed if_match on a missing object is answered 404: obstore names it by the condition.
    by_name = _BY_NAME.get(type(error).__name__)
    if kind is BackendError or (by_name is PreconditionFailed and kind is NotFound):
        kind = by_name or (NotFound if isinstance(error, FileNotFoundError) else _by_sign(text))
    return kind(scrubber.scrub(_detail(text)))


def _by_sign(text: str) -> type[StorageError]:
    return next((kind for sign, kind in _SIGNS if sign.search(text)), BackendError)


def _detail(text: str) -> str:
    """Return the part of obstore's long text that says something to a person."""
    message = _MESSAGE.search(text)
    code = _CODE.search(text)
    if message:
        return f"{code[1]}: {message[1]}" if code else message[1]
    return " ".join(text.partition("Debug source:")[0].split())[:_MAX_DETAIL]
