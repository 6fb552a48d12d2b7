"""The runner of the examples must be able to fail, and must leave nothing of a failed example behind."""

from pathlib import Path

import pytest

from scripts import run_examples

pytestmark = pytest.mark.integration


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_examples, "ROOT", tmp_path)
    monkeypatch.setattr(run_examples, "GRACE_S", 0.2)
    folder = tmp_path / "examples"
    folder.mkdir()
    return folder


def test_an_example_that_ends_well_passes(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (examples / "good.py").write_text("import os; assert os.environ['ELASTIC_TRAIN_HOME']")
    (examples / "_part.py").write_text("raise SystemExit('not an example by itself')")
    assert run_examples.main([]) == 0
    assert "1 passed, 0 failed" in capsys.readouterr().out


def test_an_example_that_raises_fails_with_its_output(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (examples / "bad.py").write_text("raise RuntimeError('what went wrong')")
    assert run_examples.main([]) == 1
    assert "what went wrong" in capsys.readouterr().out


def test_an_example_that_hangs_is_ended_in_time(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (examples / "hangs.py").write_text("import signal; print('so far', flush=True); signal.pause()")
    assert run_examples.main(["--time-bound", "1.5"]) == 1
    output = capsys.readouterr().out
    assert "did not end within" in output
    assert "so far" in output


def test_an_example_that_leaves_a_process_fails(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (examples / "leaks.py").write_text("import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)")
    assert run_examples.main([]) == 1
    assert "left processes behind:\npid" in capsys.readouterr().out


def test_no_examples_at_all_is_a_failure(examples: Path) -> None:
    with pytest.raises(SystemExit, match="there are: none"):
        run_examples.main([])


def test_a_name_that_is_no_example_is_refused(examples: Path) -> None:
    (examples / "good.py").touch()
    with pytest.raises(SystemExit, match="no example named goood; there are: good"):
        run_examples.main(["goood"])
