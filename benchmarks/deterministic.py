"""Step time of deterministic mode beside the usual mode and plain DDP, in turns within one run, on a transformer.

python -m benchmarks.deterministic [--repeats 5] [--steps 40] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

import elastic_train as et
from benchmarks import transformer_workload as workload
from benchmarks.common import finish, median, parse_arguments, summarize
from benchmarks.peers.torchrun import measure_step_times
from elastic_train.testing.running_job import RunningJob

_WARM_UP = 8
_POOL = len(workload.build_samples()[0]) // workload.GLOBAL_BATCH_SIZE
_MODES = {"usual": (1, False), "one_shard": (1, True), "four_shards": (4, True)}
"""Logical shards of each worker, and whether the job is deterministic."""


def train(config: dict[str, Any]) -> None:
    """Train the common transformer; leave how much memory it took at most."""
    model = workload.build_model()
    optimizer = workload.build_optimizer(model)
    state = et.TrainState(model=model, optimizer=optimizer)
    batches = et.ElasticBatches(
        TensorDataset(*workload.build_samples()),
        global_batch_size=workload.GLOBAL_BATCH_SIZE,
        data_epochs=config["data_epochs"],
    )
    for step in state.steps(batches):
        with step:
            for inputs, targets in step:
                step.report(loss=step.backward(nn.functional.cross_entropy(model(inputs), targets)))
            optimizer.step()
    if et.get_context().rank == 0:
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        Path(config["memory"]).write_text(json.dumps({"peak": kib * 1024, "gradients": gradients}))


def measure(mode: str, workers: int, steps: int) -> dict[str, float]:
    """Return the median seconds between rank 0's commits after a warm-up, and bytes: peak and those of gradients."""
    shards, deterministic = _MODES[mode]
    directory = Path(tempfile.mkdtemp(prefix="et-bench-"))
    memory = directory / "memory.json"
    trainer = et.ElasticTrainer(
        train,
        config={"data_epochs": -(-(_WARM_UP + steps) // _POOL), "memory": str(memory)},
        num_workers=workers,
        max_workers=workers,
        logical_shards=shards * workers,
        deterministic=deterministic,
        progress=False,
        work_dir=directory / "job",
        checkpoint_config=et.CheckpointConfig(every_seconds=None, at_end=False),
    )
    try:
        with RunningJob(trainer) as job:
            job.result()
            first = job.ranks()[0]
            times = [record.t for record in job.of("step_committed") if record.source == first]
            took: dict[str, float] = json.loads(memory.read_text())
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return {"step_s": median([after - before for before, after in pairwise(times)][_WARM_UP:]), **took}


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=40, help="steps of each run (%(default)s)")
        parser.add_argument("--workers", type=int, default=2, help="workers (%(default)s)")

    arguments = parse_arguments(__doc__ or "", repeats=5, extend=extend)
    ours: dict[str, list[dict[str, float]]] = {mode: [] for mode in _MODES}
    ddp = []
    for _ in range(arguments.repeats):
        for mode, measured in ours.items():
            measured.append(measure(mode, arguments.workers, arguments.steps))
        ddp.append(median(measure_step_times(arguments.workers, steps=arguments.steps, workload=workload.__name__)))
        told = ", ".join(f"{mode} {measured[-1]['step_s'] * 1e3:.1f} ms" for mode, measured in ours.items())
        print(f"{told}, DDP {ddp[-1] * 1e3:.1f} ms", flush=True)
    usual = ours["usual"]
    gradients = usual[0]["gradients"]
    figures: dict[str, Any] = {"workers": arguments.workers, "gradient_bytes": gradients, "ddp_step_s": summarize(ddp)}
    for mode, measured in ours.items():
        figures[mode] = {"step_s": summarize(run["step_s"] for run in measured)}
        if mode == "usual":
            continue
        pairs = list(zip(measured, usual, ddp, strict=True))
        figures[mode] |= {
            "to_usual": summarize(mine["step_s"] / theirs["step_s"] for mine, theirs, _ in pairs),
            "to_ddp": summarize(mine["step_s"] / plain for mine, _, plain in pairs),
            "peak_memory_change_in_gradients": median(
                (mine["peak"] - theirs["peak"]) / gradients for mine, theirs, _ in pairs
            ),
        }
    finish("deterministic", figures, arguments)


if __name__ == "__main__":
    main()
