"""Who is odd, where all should say the same. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def odd_ones(said: Mapping[str, str]) -> tuple[str, ...]:
    """Return who does not say what more than half of all say, in the order given; all where no such majority is."""
    value, count = Counter(said.values()).most_common(1)[0]
    if 2 * count <= len(said):
        return tuple(said)
    return tuple(name for name, other in said.items() if other != value)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names whose values differ, or that only one of them has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
