"""Keep credentials out of what client libraries log at the DEBUG level: request headers and bodies."""

from __future__ import annotations

import logging
import traceback
import weakref

from storage.redaction import Scrubber

_LIBRARIES = ("aiobotocore", "aiohttp", "boto3", "botocore", "fsspec", "s3fs", "urllib3")

_scrubbers: weakref.WeakSet[Scrubber] = weakref.WeakSet()


class _ScrubbingFilter(logging.Filter):
    """Rewrite records with the secrets of all open stores masked."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
            record.exc_info = None
        everything = Scrubber()  # one after the other, a short secret of one store would break up a longer of another
        for scrubber in list(_scrubbers):
            everything.learn(scrubber.secrets)
        text = everything.scrub(text)
        record.msg, record.args = text, ()
        return True


_filter = _ScrubbingFilter()


def scrub_logs(scrubber: Scrubber) -> None:
    """Mask the scrubber's secrets in the logs of client libraries from now on, as long as it lives.

    Call it after the client was imported: filters hold for one logger each, and not for its children.
    """
    _scrubbers.add(scrubber)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in _LIBRARIES and isinstance(logger, logging.Logger):
            logger.addFilter(_filter)  # which does nothing the second time
