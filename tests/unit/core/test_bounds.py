from __future__ import annotations

import pytest

from elastic_train.core.bounds import Backoff, Bounds
from elastic_train.errors import ConfigurationError


@pytest.mark.parametrize(
    ("sizes", "parameter"), [((0, 2, 1), "min_workers"), ((3, 2, 3), "max_workers"), ((1, 2, 3), "num_workers")]
)
def test_bounds_that_cannot_work_are_refused_by_name(sizes: tuple[int, int, int], parameter: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Bounds(*sizes)
    assert caught.value.parameter == parameter


def test_each_further_end_waits_twice_as_long_up_to_a_limit() -> None:
    backoff, waits = Backoff(), []
    for at_s in range(6):
        backoff = backoff.again(at_s, began_s=at_s)
        waits.append(backoff.delay_s(1.0, 5.0))
    assert waits == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_what_began_before_the_last_end_belongs_to_it() -> None:
    once = Backoff().again(10.0, began_s=0.0)
    assert once.again(11.0, began_s=5.0) is once
    assert once.again(11.0, began_s=10.0).count == 2


def test_quiet_makes_good() -> None:
    twice = Backoff().again(1.0, 0.0).again(2.0, 1.5)
    assert twice.after_quiet(11.9, quiet_s=10.0) is twice
    assert twice.after_quiet(12.1, quiet_s=10.0) == Backoff()


def test_the_losses_of_a_large_world_are_waited_for_longer() -> None:
    bounds = Bounds(min_workers=1, max_workers=4, num_workers=2, coalesce_s=0.02, coalesce_per_worker_s=0.0002)
    assert [bounds.coalescing_s(members) for members in (0, 4, 100, 1000)] == [0.02, 0.02, 0.02, 0.2]
