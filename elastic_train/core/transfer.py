"""Who sends the state to whom when a world forms: in rounds, every member that has it sends to one that has not."""

from __future__ import annotations

from collections.abc import Sequence


def transfer_rounds(holders: Sequence[int], receivers: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Plan the rounds of a state transfer; the number of holders at most doubles in each.

    Args:
        holders: Ranks that have the newest state, at least one.
        receivers: Ranks that need it; disjoint from `holders`.

    Returns:
        Rounds of (sender, receiver); in one round every rank appears at most once. ceil(log2(n / holders)) rounds.
    """
    have, need = list(holders), list(receivers)
    rounds: list[list[tuple[int, int]]] = []
    while need:
        pairs = list(zip(have, need, strict=False))
        need = need[len(pairs) :]
        have += [receiver for _, receiver in pairs]
        rounds.append(pairs)
    return rounds
