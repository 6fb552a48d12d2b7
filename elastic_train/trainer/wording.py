"""Reasons in few words: what fits on a line. The whole of them is in the journal and in the result."""

from __future__ import annotations

import re

_PARENTHESES = re.compile(r"\s*\((?:[^()]|\([^()]*\))*\)")
_SYMPTOM = "a collective of "


def brief(reason: str) -> str:
    """Return a reason without details in parentheses, and without symptoms where the cause is known too."""
    clauses = [clause.strip() for clause in _PARENTHESES.sub("", reason).split(";")]
    causes = [clause for clause in clauses if clause and not clause.startswith(_SYMPTOM)]
    return "; ".join(causes or clauses)
