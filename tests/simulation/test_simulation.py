"""Whole jobs under faults, in one thread, from one seed: the invariants hold, and the checks can fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elastic_train.testing.simulation import scenario
from elastic_train.testing.simulation.__main__ import main
from elastic_train.testing.simulation.faults import KINDS
from elastic_train.testing.simulation.job import Report, Setting, setting_for
from elastic_train.testing.simulation.tally import Tally
from tests.simulation import mutants

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
Change = Callable[[Setting], Setting]

MUTANTS: dict[str, tuple[Change, str]] = {
    "seals on the first acknowledgement": (mutants.with_controller(mutants.SealsOnTheFirstAcknowledgement), "I3"),
    "guards nothing": (mutants.with_controller(mutants.GuardsNothing), "I3"),
    "forgets the epoch at takeover": (mutants.with_controller(mutants.ForgetsTheEpochAtTakeover), "I3"),
    "names workers after itself": (mutants.with_controller(mutants.NamesWorkersAfterItself), "I3"),
    "ignores losses": (mutants.with_controller(mutants.IgnoresLosses), "I7"),
    "ignores suspicions": (mutants.with_controller(mutants.IgnoresSuspicions), "I7"),
    "re-forms again and again": (mutants.with_controller(mutants.ReformsAgainAndAgain), "I9"),
    "keeps an aborted step": (mutants.with_worker(mutants.KeepsTheAbortedStep), "I2"),
    "keeps an aborted step quietly": (mutants.with_worker(mutants.KeepsTheAbortedStepQuietly), "I1"),
    "takes the oldest state": (mutants.with_worker(mutants.TakesTheOldestState), "I2"),
    "transfers old state": (mutants.with_worker(mutants.TransfersOldState), "I1"),
    "commits without a lease": (mutants.by_zombies(mutants.with_worker(mutants.CommitsWithoutALease)), "I3"),
    "forgets unsaid suspicions": (mutants.with_worker(mutants.ForgetsUnsaidSuspicions), "I7"),
    "takes every fence": (mutants.by_zombies(mutants.with_store(mutants.TakesEveryFence)), "I3"),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The controller warns of what is done to it on purpose."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_the_invariants_hold_whatever_goes_wrong() -> None:
    tally = Tally()
    for seed in range(150):
        report = scenario.play(setting_for(seed))
        assert report.violation is None, f"seed {seed}: {report.violation}"
        tally.add(report)
    missing = {kind for kind in KINDS if not kind.startswith(("lose-rec", "lose-susp", "duplicate"))} - set(
        tally.faults
    )
    assert not missing, f"these faults never struck: {missing}"


@pytest.mark.parametrize("seed", [3, 17, 62, 418])
def test_a_seed_gives_the_same_run_every_time(seed: int) -> None:
    first, second = (scenario.play(setting_for(seed)) for _ in range(2))
    assert (first.events, first.commits, first.worlds, first.faults, first.resumed_s) == (
        second.events,
        second.commits,
        second.worlds,
        second.faults,
        second.resumed_s,
    )


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_what_once_failed_holds_now(path: Path) -> None:
    report = scenario.play(scenario.read(path.read_text()))
    assert report.violation is None, report.violation


@pytest.mark.parametrize("name", MUTANTS)
def test_a_known_bug_is_noticed(name: str) -> None:
    spoil, invariant = MUTANTS[name]
    found = _search(spoil)
    assert found is not None, f"nobody noticed a protocol that {name}"
    assert found.violation is not None
    assert found.violation.invariant == invariant, found.violation


def test_a_failing_plan_is_made_small_and_fails_in_the_same_way_when_it_is_played_again() -> None:
    spoil, _ = MUTANTS["transfers old state"]
    found = _search(spoil)
    assert found is not None
    assert found.violation is not None
    setting = spoil(setting_for(found.seed))
    small, violation = scenario.minimise(setting, found.violation)
    assert len(scenario.faults_of(small)) < len(scenario.faults_of(setting)) / 4
    again = scenario.play(spoil(scenario.read(scenario.write(small, violation))))
    assert str(again.violation) == str(violation)


def test_a_line_that_is_no_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a setting nor a fault"):
        scenario.read("seed 1\nworkers 4\n1.0 offend-worker 3 0.5\n")


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--seeds", "3", "--seed", "5", "--save", str(tmp_path)]) == 0
    assert '"violations": 0' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def _search(spoil: Change, seeds: int = 600) -> Report | None:
    """Return the first run that a bug spoils."""
    return next(
        (report for seed in range(seeds) if (report := scenario.play(spoil(setting_for(seed)))).violation), None
    )
