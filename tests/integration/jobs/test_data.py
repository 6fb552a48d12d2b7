"""Every sample is used exactly once, whatever it is read from, while workers are killed, join and leave."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from elastic_train import CheckpointConfig, ElasticTrainer
from elastic_train.core.data import BatchPlan, indices_crc, mix
from elastic_train.journal.lineage import lineage
from elastic_train.testing.running_job import RunningJob
from tests.integration.jobs.data_functions import (
    Augmented,
    loss_of,
    make_stream,
    model_of,
    train_on_batches,
    train_on_streams,
)

SHARDS, SIZE, BATCH = 4, 960, 16


def trainer(
    train: Callable[..., None], tmp_path: Path, workers: int, config: dict[str, Any], **options: Any
) -> ElasticTrainer:
    busy = tmp_path / "busy"
    tmp_path.mkdir(exist_ok=True)
    busy.touch()
    return ElasticTrainer(
        train,
        config={
            "batch": BATCH,
            "data_epochs": 2,
            "busy": str(busy),
            "weights": str(tmp_path / "weights.pt"),
            "pids": str(tmp_path),
            "size": SIZE,
            **config,
        },
        num_workers=workers,
        min_workers=1,
        max_workers=SHARDS,
        progress=False,
        work_dir=tmp_path / "job",
        **options,
    )


def reference_weights(seed: int) -> torch.Tensor:
    """Return the weights of an undisturbed run in this process, with the augmentations that reader processes draw."""
    plan = BatchPlan(SIZE, BATCH, SHARDS, 2, seed=seed)
    model, optimizer = model_of()
    dataset = Augmented(SIZE, "")
    for step in range(plan.total_steps):
        samples = []
        for shard in range(SHARDS):
            share = plan.share_of_shards(step, (shard, shard + 1))
            torch.manual_seed(mix(seed, step, shard, share.start) >> 1)
            samples += [dataset[index] for index in plan.indices(share.data_epoch, share.start, share.stop).tolist()]
        optimizer.zero_grad()
        loss_of(model, torch.stack(samples)).backward()
        optimizer.step()
    weights: torch.Tensor = model.state_dict()["weight"]
    return weights


@pytest.mark.parametrize("weighted", [False, True])
def test_reader_processes_serve_every_world_the_same_augmented_samples(tmp_path: Path, weighted: bool) -> None:
    pids, weights = tmp_path / "pids", tmp_path / "weights.pt"
    pids.mkdir()
    config = {"size": SIZE, "pids": str(pids), "weights": str(weights), "weighted": weighted}
    elastic = trainer(train_on_batches, tmp_path, 3, config)
    with RunningJob(elastic) as job:
        job.wait_for_step(8, world_size=3)
        victim = psutil.Process(job.pids[job.ranks()[1]])
        of_victim = victim.children(recursive=True)
        assert [child for child in of_victim if (pids / str(child.pid)).exists()], "it reads in other processes"
        job.signal(job.ranks()[1])
        job.wait_for_step(12)
        _, alive = psutil.wait_procs(of_victim, timeout=20)
        assert not alive
        elastic.resize(4)
        grown = job.wait_for_step(20, world_size=4)
        elastic.resize(2)
        job.wait_for_step(grown["step"] + 1, world_size=2)
        (tmp_path / "busy").unlink()
        result = job.result()
        assert result.steps == 2 * SIZE // BATCH
        assert job.findings() == []
        assert not [pid for pid in pids.iterdir() if psutil.pid_exists(int(pid.name))]
        if not weighted:
            found = torch.load(weights, weights_only=True)["weight"]
            torch.testing.assert_close(found, reference_weights(0), rtol=1e-9, atol=1e-11)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with the samples of 8 files, as lines of text and as tar archives."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(8):
        keys = [1000 * number + sample for sample in range(160 - 5 * (number % 3))]
        (folder / f"{number}.txt").write_text("\n".join(map(str, keys)))
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for key in keys:
                content = f"{key}".encode()
                member = tarfile.TarInfo(f"{key:06}.txt")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


def expected_keys(config: dict[str, Any], shard: int) -> list[int]:
    """Return the numbers of a stream's samples, without the library that reads it where it leaves files open."""
    if config["kind"] != "webdataset":
        return [sample["id"] for sample in make_stream(config, shard, SHARDS)]
    keys = []
    for path in sorted(Path(config["files"]).glob("*.tar"))[shard::SHARDS]:
        with tarfile.open(path) as tar:
            keys += [int(name.partition(".")[0]) for name in tar.getnames()]
    return keys


def assert_the_streams_were_read(job: RunningJob, config: dict[str, Any]) -> None:
    """Assert that each run that the committed steps read is that of a stream read in this process, to its end."""
    expected = {shard: expected_keys(config, shard) for shard in range(SHARDS)}
    reached = dict.fromkeys(range(SHARDS), 0)
    reads = {(r["membership_epoch"], r["step"], r.source): r for r in job.of("step_read")}
    for committed in lineage(job.records):
        key = (committed.membership_epoch, committed.transaction[1])
        for read in [read for (*place, _), read in reads.items() if tuple(place) == key]:
            for shard, start, count, crc in read["runs"]:
                assert crc == indices_crc(np.array(expected[shard][start : start + count], dtype=np.int64))
                reached[shard] += count
    assert reached == {shard: config["data_epochs"] * len(numbers) for shard, numbers in expected.items()}


@pytest.mark.parametrize("kind", ["counted", "torchdata", "huggingface", "webdataset"])
def test_streams_are_used_once_through_kills_joins_and_leaves(tmp_path: Path, files: Path, kind: str) -> None:
    if kind == "torchdata":
        pytest.importorskip("torchdata")
    elif kind == "huggingface":
        pytest.importorskip("datasets")
    elif kind == "webdataset":
        pytest.importorskip("webdataset")
    config = {"kind": kind, "length": 320, "files": str(files), "data_epochs": 2}
    elastic = trainer(train_on_streams, tmp_path, 3, config)
    with RunningJob(elastic) as job:
        job.wait_for_step(8, world_size=3)
        job.signal(job.ranks()[1])
        job.wait_for_step(12)
        elastic.resize(4)
        grown = job.wait_for_step(13, world_size=4)
        at = job.signal(job.ranks()[0])
        shrunk = job.wait_for_step(grown["step"] + 1, after=at)
        elastic.resize(2)
        job.wait_for_step(shrunk["step"] + 1, world_size=2)
        (tmp_path / "busy").unlink()
        job.result()
        assert job.findings() == []
        assert_the_streams_were_read(job, config)
        if kind in ("torchdata", "huggingface"):
            assert max(record["skipped"] for record in job.of("stream_opened")) <= 10 * BATCH // SHARDS


def test_streams_go_on_from_a_checkpoint_when_everyone_is_killed(tmp_path: Path, files: Path) -> None:
    config = {"kind": "counted", "length": 100, "files": str(files), "data_epochs": 1}
    saving = CheckpointConfig(every_steps=4)
    with RunningJob(trainer(train_on_streams, tmp_path, 2, config, checkpoint_config=saving)) as job:
        job.wait_for("a checkpoint", lambda: any(r["version"] >= 8 for r in job.of("checkpoint_committed")))
        for worker in job.ranks():
            job.signal(worker)
        (tmp_path / "busy").unlink()
        job.result()
        assert job.of("checkpoint_restored")
        assert job.findings() == []
        assert_the_streams_were_read(job, config)


@pytest.mark.parametrize("train", [train_on_batches, train_on_streams])
def test_a_deterministic_job_has_the_same_weights_after_a_kill_on_other_workers(
    tmp_path: Path, train: Callable[..., None]
) -> None:
    config = {"kind": "counted", "length": 90, "data_epochs": 1, "size": 480}
    weights = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        with RunningJob(trainer(train, folder, workers, config, deterministic=True)) as job:
            job.wait_for_step(5, world_size=workers)
            if workers > 1:
                at = job.signal(job.ranks()[1])
                job.wait_for_step(6, after=at)
            (folder / "busy").unlink()
            job.result()
            assert job.findings() == []
        weights.append(torch.load(folder / "weights.pt", weights_only=True)["weight"])
    assert torch.equal(*weights)
