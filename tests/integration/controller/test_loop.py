from __future__ import annotations

from elastic_train.core.effects import Ending, FinishJob
from elastic_train.core.records import Cause, Failure, Stage, WorkerId, WorkerStatus
from elastic_train.core.world import Phase
from elastic_train.errors import CoordinationUnavailable
from elastic_train.ports import Delete, Put
from tests.integration.controller.fakes import led_job, wait_for


def test_a_job_gathers_its_workers_and_publishes_a_world_whose_fence_is_its_revision() -> None:
    with led_job(num_workers=3) as job:
        leader = job.lead()
        world = job.sealed(3)
        assert sorted(world.members) == ["w0001", "w0002", "w0003"]
        wait_for(lambda: leader.controller.history, "the history")
        (change,) = leader.controller.history
        item = job.client.get(job.keys.world)
        assert item is not None
        assert (change.fence, change.cause, change.members) == (item.mod_revision, Cause.START, world.members)


def test_a_killed_worker_is_left_out_and_replaced() -> None:
    with led_job(num_workers=3) as job:
        job.lead()
        before = job.sealed(3)
        job.launcher.workers[before.members[1]].kill()
        after = job.sealed(3, after=before.membership_epoch)
        assert before.members[1] not in after.members
        assert after.members[:2] == (before.members[0], before.members[2])
        (loss,) = [record for record in job.journal.of("world_sealed") if record["cause"] is Cause.LOSS]
        assert "SIGKILL" in loss["reason"]


def test_the_loss_of_all_workers_at_once_is_survived_by_starting_new_ones() -> None:
    with led_job(num_workers=3) as job:
        job.lead()
        before = job.sealed(3)
        for member in before.members:
            job.launcher.workers[member].kill()
        after = job.sealed(3, after=before.membership_epoch)
        assert not set(after.members) & set(before.members)


def test_a_resize_is_answered_and_carried_out_both_ways() -> None:
    with led_job(num_workers=2) as job:
        job.lead()
        job.sealed(2)
        assert job.ask("resize", workers=4).accepted
        larger = job.sealed(4)
        assert job.ask("resize", workers=1).accepted
        smaller = job.sealed(1)
        assert smaller.members == larger.members[:1]
        assert smaller.cause is Cause.RESIZE


def test_requests_that_cannot_be_met_are_refused_with_the_reason() -> None:
    with led_job(max_workers=4, num_workers=1) as job:
        job.lead()
        job.sealed(1)
        answers = [job.ask("resize", workers=9), job.ask("drain", worker_id="nobody"), job.ask("save")]
        assert not any(answer.accepted for answer in answers)
        assert "[1, 4]" in answers[0].message
        assert "no such worker" in answers[1].message
        assert "save" in answers[2].message


def test_a_drained_worker_is_replaced_in_one_change() -> None:
    with led_job(num_workers=2) as job:
        job.lead()
        before = job.sealed(2)
        assert job.ask("drain", worker_id=before.members[0], reason="maintenance").accepted
        after = job.sealed(2, after=before.membership_epoch)
        assert after.membership_epoch == before.membership_epoch + 1
        assert before.members[0] not in after.members
        assert after.planned
        assert "maintenance" in after.reason


def test_a_stop_lets_all_leave_and_ends_the_job() -> None:
    with led_job(num_workers=2) as job:
        leader = job.lead()
        job.sealed(2)
        assert job.ask("stop", reason="enough").accepted
        outcome = leader.finish()
        assert isinstance(outcome, FinishJob)
        assert outcome.ending is Ending.STOPPED
        assert job.world is not None
        assert (job.world.stage, job.world.outcome) == (Stage.ENDED, "stopped")
        assert job.client.get(job.keys.leader) is None


def test_a_job_ends_when_all_members_have_finished() -> None:
    with led_job(num_workers=2) as job:
        leader = job.lead()
        for member in job.sealed(2).members:
            job.launcher.workers[member].end_with(WorkerStatus.FINISHED)
        outcome = leader.finish()
        assert isinstance(outcome, FinishJob)
        assert outcome.ending is Ending.FINISHED
        assert job.world is not None
        assert job.world.outcome == "succeeded"


def test_an_exception_of_user_code_ends_the_job_and_reaches_the_outcome() -> None:
    with led_job(num_workers=2) as job:
        leader = job.lead()
        failure = Failure("ValueError", "loss is nan", "Traceback ...", rank=0, membership_epoch=1, step=7)
        job.launcher.workers[job.sealed(2).members[0]].end_with(WorkerStatus.FAILED, failure)
        outcome = leader.finish()
        assert isinstance(outcome, FinishJob)
        assert (outcome.ending, outcome.failure) == (Ending.USER_CODE, failure)


def test_workers_that_cannot_be_launched_end_the_job_with_the_launchers_words() -> None:
    with led_job(num_workers=2, max_start_failures=3) as job:
        job.launcher.refuses = True
        outcome = job.lead().finish()
        assert isinstance(outcome, FinishJob)
        assert outcome.ending is Ending.NO_START
        assert "no more processes" in outcome.reason
        assert len(set(job.launcher.launches)) == len(job.launcher.launches)


def test_a_standby_takes_over_a_running_world_without_disturbing_it() -> None:
    with led_job(num_workers=3) as job:
        first = job.lead()
        world = job.sealed(3)
        wait_for(lambda: first.controller.history, "the first controller to have heard of its own seal")
        second = job.lead()
        first.controller.abandon()
        assert first.finish() is None
        wait_for(lambda: second.controller.state.phase is Phase.RUNNING, "the second controller")
        assert job.world == world
        job.launcher.workers[world.members[2]].kill()
        after = job.sealed(3, after=world.membership_epoch)
        assert after.members[:2] == world.members[:2]
        assert WorkerId("w0004") in after.members


def test_a_controller_that_lost_its_leader_key_writes_nothing_more_and_stands_by() -> None:
    with led_job(num_workers=2) as job:
        first = job.lead()
        world = job.sealed(2)
        wait_for(lambda: first.controller.history)
        job.client.commit([Delete(job.keys.leader)])
        usurper = Put(job.keys.leader, b"another")
        job.client.commit([usurper])
        job.launcher.workers[world.members[1]].kill()
        wait_for(lambda: job.journal.of("leadership_lost"), "the controller to notice")
        assert job.world == world
        job.client.commit([Delete(job.keys.leader)])
        job.sealed(2, after=world.membership_epoch)


def test_a_seal_whose_answer_is_lost_has_one_fence_for_everybody() -> None:
    with led_job(num_workers=2) as job:
        lost: list[str] = []

        def lose_answers_of_seals(request: str) -> None:
            world = job.store.get(job.keys.world)
            if request == "commit" and world is not None and b'"sealed"' in world.value and not lost:
                lost.append(request)
                raise CoordinationUnavailable("the answer was lost")

        job.store.after = lose_answers_of_seals
        leader = job.lead()
        job.sealed(2)
        (change,) = wait_for(lambda: leader.controller.history)
        item = job.client.get(job.keys.world)
        assert lost
        assert item is not None
        assert change.fence == item.mod_revision


def test_what_groups_exchanged_is_deleted_when_the_next_world_is_sealed() -> None:
    with led_job(num_workers=2) as job:
        job.lead()
        before = job.sealed(2)
        left = job.keys.group(before.membership_epoch) + "address"
        job.client.commit([Put(left, b"127.0.0.1")])
        job.launcher.workers[before.members[1]].kill()
        job.sealed(2, after=before.membership_epoch)
        assert job.client.get(left) is None


def test_every_decision_is_in_the_journal_before_its_effects() -> None:
    with led_job(num_workers=1) as job:
        leader = job.lead()
        job.launcher.workers[job.sealed(1).members[0]].end_with(WorkerStatus.FINISHED)
        leader.finish()
        kinds = [record["kind"] for record in job.journal.records]
        proposing = next(
            number
            for number, record in enumerate(job.journal.records)
            if record["kind"] == "transition" and any(effect["type"] == "ProposeWorld" for effect in record["effects"])
        )
        assert kinds.index("world_proposed") > proposing
        assert kinds[-1] == "job_ended"
        assert all(record["reason"] for record in job.journal.of("transition"))
