from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from checkpointing import Checkpointer, cli
from storage import open_store
from tests.unit.checkpointing.harness import FAST, same, save, state_of


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"file://{tmp_path}/store"
    with open_store(address) as store, Checkpointer(store, job="job", settings=FAST) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, state_of(step), fence=1, metadata={"loss": step / 10})
            checkpointer.wait()
    return address


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers())
    args = parser.parse_args(["checkpoints", *words])
    return int(args.run(args))


def damage(url: str, step: int) -> str:
    path = next(Path(url.removeprefix("file://")).glob(f"job/shards/{step:012d}-*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    return path.name


def test_ls_shows_every_checkpoint(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", url) == cli.OK
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("step", "10", "20", "30", "newest", "kept", "KiB"))
    assert run("ls", url, "--json") == cli.OK
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["step"], row["state"]) for row in rows] == [(30, "newest"), (20, "kept"), (10, "kept")]
    assert rows[0]["metadata"] == {"loss": 3.0}


def test_ls_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", f"file://{tmp_path}/none") == cli.BAD
    assert "no whole checkpoint" in capsys.readouterr().err


def test_ls_shows_what_is_damaged(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    next(Path(url.removeprefix("file://")).glob("job/shards/000000000020-*")).unlink()
    assert run("ls", url, "--json") == cli.BAD
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states[1] == "damaged"


def test_show_tells_what_is_in_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", url, "--tensors") == cli.OK
    shown = capsys.readouterr().out
    assert "step        30" in shown
    assert "tensor      model/frozen  F32[20000]  78.1 KiB  numpy" in shown


def test_verify_finds_a_flipped_bit(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", url, "--all") == cli.OK
    name = damage(url, 20)
    assert run("verify", url) == cli.OK, "the newest is good"
    assert run("verify", url, "--all") == cli.BAD
    shown = capsys.readouterr().out
    assert "step 20 (fence 1): DAMAGED" in shown
    assert name in shown


def test_export_writes_what_safetensors_opens(url: str, tmp_path: Path) -> None:
    target = tmp_path / "out" / "state.safetensors"
    assert run("export", url, "--step", "20", "--to", str(target)) == cli.OK
    with safe_open(target, "numpy") as opened:
        assert set(opened.keys()) == {"model/frozen", "model/head", "optimizer/state/0/m"}
        assert same(np.asarray(opened.get_tensor("model/head")), state_of(20)["model"]["head"])
        assert json.loads(opened.metadata()["tree"])["position"] == 20 * 256
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_export_writes_what_torch_opens(url: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    target = tmp_path / "state.pt"
    assert run("export", url, "--to", str(target)) == cli.OK
    loaded = torch.load(target, weights_only=False)
    assert same(loaded["model"]["head"], state_of(30)["model"]["head"])


def test_a_damaged_checkpoint_is_not_exported(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = damage(url, 30)
    target = tmp_path / "out" / "state.safetensors"
    assert run("export", url, "--to", str(target)) == cli.BAD
    assert name in capsys.readouterr().err
    assert not list(target.parent.iterdir())


def test_rm_removes_one_and_the_newest_only_by_force(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rm", url, "--step", "30") == cli.FAULT
    assert "--force" in capsys.readouterr().err
    assert run("rm", url, "--step", "20") == cli.OK
    assert run("rm", url, "--step", "20") == cli.BAD
    assert "committed: 30, 10" in capsys.readouterr().err
    assert run("rm", url, "--step", "30", "--force") == cli.OK
    capsys.readouterr()
    assert run("ls", url, "--json") == cli.OK
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == [10]
    assert run("verify", url) == cli.OK


def test_gc_removes_litter_and_can_rehearse(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    litter = Path(url.removeprefix("file://")) / "job" / "shards" / "litter.safetensors"
    litter.write_bytes(b"12345")
    assert run("gc", url, "--min-age-s", "-1", "--dry-run") == cli.OK
    assert litter.exists()
    assert run("gc", url) == cli.OK
    assert litter.exists(), "it is young"
    assert run("gc", url, "--min-age-s", "-1") == cli.OK
    assert not litter.exists()
    assert "removed  job/shards/litter.safetensors  5 B" in capsys.readouterr().out
    assert run("verify", url, "--all") == cli.OK


def test_several_jobs_are_told_apart(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(url) as store:
        save(store, 1, job="other")
    assert run("verify", url) == cli.FAULT
    assert "choose one with --job: job, other" in capsys.readouterr().err
    assert run("verify", url, "--job", "other") == cli.OK
    assert run("ls", url) == cli.OK


@pytest.mark.parametrize("bad", ["nonsense://x", "http://"])
def test_a_bad_url_is_the_users_fault(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", bad) == cli.FAULT
    assert capsys.readouterr().err.startswith("elastic-train checkpoints: ")


def test_an_export_needs_a_known_ending(url: str, tmp_path: Path) -> None:
    assert run("export", url, "--to", str(tmp_path / "x.npz")) == cli.FAULT
