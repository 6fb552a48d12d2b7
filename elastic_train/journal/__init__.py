"""The journal: append-only JSON lines in which every participant tells what happened, each in a file of its own.

It is what the live view, the result, the goodput account and the checkers read; nothing is decided by it.
"""

from elastic_train.journal.reader import BadLine, JournalTail, Record, read_journal
from elastic_train.journal.writer import Journal

__all__ = ["BadLine", "Journal", "JournalTail", "Record", "read_journal"]
