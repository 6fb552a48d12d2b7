"""Positions in streams: pure steps to the end of all of them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from elastic_train.core.streams import Announcement, Ends, StreamPlan, StreamPosition


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    per_stream=st.integers(1, 5),
    extra=st.integers(0, 5),
    ends=st.sampled_from(["all", "any"]),
    data_epochs=st.integers(1, 3),
)
def test_steps_take_each_sample_once_until_the_streams_end(
    lengths: list[int], per_stream: int, extra: int, ends: Ends, data_epochs: int
) -> None:
    shards = len(lengths)
    plan = StreamPlan(per_stream * shards + min(extra, shards - 1), shards, data_epochs, ends)
    quotas = plan.quotas
    assert sum(quotas) == plan.global_batch_size

    def counts_at(used: tuple[int, ...]) -> list[int]:
        return [min(quota, length - before) for quota, length, before in zip(quotas, lengths, used, strict=True)]

    position = StreamPosition.start(plan)
    if plan.is_over(Announcement.of(counts_at(position.used), quotas)):
        return  # too short for one step: an error, elsewhere
    steps = 0
    while position.data_epoch < data_epochs:
        counts = counts_at(position.used)
        if position.whole:
            assert counts == list(quotas)
        share = position.share(steps, (0, shards), counts)
        assert share.samples == share.global_samples == sum(counts) > 0
        assert share.samples_of_all_data_epochs[0] == position.base + sum(position.used)
        halves = [position.share(steps, cut, counts) for cut in ((0, shards // 2), (shards // 2, shards))]
        assert (halves[0].stop, halves[1].stop) == (halves[1].start, share.stop)
        used = tuple(before + count for before, count in zip(position.used, counts, strict=True))
        position = position.after(counts, Announcement.of(counts_at(used), quotas), plan)
        assert StreamPosition.from_tree(json.loads(json.dumps(position.as_tree()))) == position
        steps += 1
    whole = min(length // quota for length, quota in zip(lengths, quotas, strict=True))
    each = sum(lengths) if ends == "all" else whole * plan.global_batch_size
    assert position.base == data_epochs * each
