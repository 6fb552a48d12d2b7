from elastic_train.adapters.launcher.external import ExternalLauncher
from elastic_train.core.records import WorkerId
from elastic_train.ports import WorkerExited, WorkerStarted


def test_a_launch_is_answered_by_what_a_person_can_do() -> None:
    events: list[WorkerStarted | WorkerExited] = []
    launcher = ExternalLauncher(hint="run `elastic-train worker --job mine`")
    launcher.start(events.append)
    assert launcher.capacity() == 0
    launcher.launch([WorkerId("a")])
    assert events == [
        WorkerExited(
            WorkerId("a"), None, "this job's launcher starts no workers: run `elastic-train worker --job mine`"
        )
    ]
