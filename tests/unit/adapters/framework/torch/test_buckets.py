"""The bucket plan, on any sizes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elastic_train.adapters.framework.torch.buckets import ALIGNMENT_BYTES, GradientSpec, plan_buckets

FIRST, REST = 400, 4000

BYTES = {"double": 8, "float": 4, "half": 2}

specs = st.lists(
    st.tuples(st.integers(min_value=0, max_value=2000), st.sampled_from(sorted(BYTES))).map(
        lambda drawn: GradientSpec(drawn[0], BYTES[drawn[1]], drawn[1])
    ),
    max_size=40,
)


@given(specs)
def test_every_gradient_lies_in_one_bucket_of_its_kind(gradients: list[GradientSpec]) -> None:
    plan = plan_buckets(gradients, FIRST, REST)
    assert sorted(index for bucket in plan for index in bucket.members) == list(range(len(gradients)))
    assert all(gradients[index].kind == bucket.kind for bucket in plan for index in bucket.members)


@given(specs)
def test_gradients_do_not_overlap_and_begin_at_cache_lines(gradients: list[GradientSpec]) -> None:
    for bucket in plan_buckets(gradients, FIRST, REST):
        end = 0
        for index, offset in zip(bucket.members, bucket.offsets, strict=True):
            assert offset >= end
            assert offset * gradients[index].element_bytes % ALIGNMENT_BYTES == 0
            end = offset + gradients[index].elements
        assert bucket.elements >= end


@given(specs)
def test_a_bucket_is_closed_by_the_gradient_that_fills_it(gradients: list[GradientSpec]) -> None:
    for bucket in plan_buckets(gradients, FIRST, REST):
        assert bucket.offsets[-1] * gradients[bucket.members[-1]].element_bytes < REST


@given(specs)
def test_buckets_come_in_the_order_of_their_last_gradients_in_backward(gradients: list[GradientSpec]) -> None:
    last = [min(bucket.members) for bucket in plan_buckets(gradients, FIRST, REST)]
    assert last == sorted(last, reverse=True)


@given(specs)
def test_the_plan_depends_on_nothing_but_the_sizes(gradients: list[GradientSpec]) -> None:
    assert plan_buckets(gradients, FIRST, REST) == plan_buckets(list(gradients), FIRST, REST)


def test_the_first_bucket_is_small() -> None:
    gradients = [GradientSpec(100, 4, "a")] * 10
    assert [bucket.members for bucket in plan_buckets(gradients, 400, 1600)] == [
        (9,),
        (8, 7, 6, 5),
        (4, 3, 2, 1),
        (0,),
    ]
