"""Sharded torch states: DTensors and FSDP2, saved by one number of ranks and read by another, over other dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.tensor

from checkpointing import Checkpointer
from storage import open_store
from tests.integration.checkpointing.processes import run_group
from tests.unit.checkpointing.harness import FAST

pytestmark = pytest.mark.integration


def enter_group(rank: int, size: int, folder: str, name: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{name}", rank=rank, world_size=size)


def full_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "rows": torch.randn(37, 24, generator=generator),
        "columns": torch.randn(16, 50, generator=generator),
        "both": torch.randn(10, 12, 6, generator=generator).bfloat16(),
        "copies": torch.randn(33, generator=generator),
        "plain": torch.arange(5000.0),
    }


def distributed(mesh_shape: tuple[int, ...]) -> dict[str, Any]:
    """Spread the full tensors over a mesh of one or two dimensions."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", mesh_shape)
    tensors = full_tensors()
    last = [Shard(0)] if len(mesh_shape) == 1 else [Replicate(), Shard(0)]
    spread = {
        "rows": last,
        "columns": [Shard(1)] if len(mesh_shape) == 1 else [Shard(1), Replicate()],
        "both": [Shard(1)] if len(mesh_shape) == 1 else [Shard(0), Shard(1)],
        "copies": [Replicate()] * len(mesh_shape),
    }
    made: dict[str, Any] = {name: distribute_tensor(tensors[name], mesh, how) for name, how in spread.items()}
    return {**made, "plain": tensors["plain"]}


def save_sharded(rank: int, size: int, folder: str, mesh_shape: tuple[int, ...]) -> int:
    import torch.distributed as dist

    enter_group(rank, size, folder, f"save-{size}")
    with (
        open_store(f"file://{folder}/store") as store,
        Checkpointer(store, job="job", rank=rank, world_size=size, settings=FAST) as checkpointer,
    ):
        ticket = checkpointer.save(1, {"model": distributed(mesh_shape), "step": 1}, fence=1)
        checkpointer.wait()
    dist.barrier()
    dist.destroy_process_group()
    return ticket.stats.staged_nbytes


def load_sharded(rank: int, size: int, folder: str, mesh_shape: tuple[int, ...]) -> None:
    import torch.distributed as dist

    enter_group(rank, size, folder, f"load-{size}")
    with (
        open_store(f"file://{folder}/store") as store,
        Checkpointer(store, job="job", rank=rank, world_size=size, settings=FAST) as checkpointer,
    ):
        into = distributed(mesh_shape)
        for tensor in into.values():
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            local.zero_()
        loaded = checkpointer.load(into={"model": into, "step": 0})
    assert loaded["step"] == 1
    for name, expected in full_tensors().items():
        tensor = loaded["model"][name]
        assert tensor is into[name]
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert torch.equal(whole, expected), name
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("written_by", "read_by"),
    [((3,), (2,)), ((2,), (4,)), ((2, 2), (3,)), ((3,), (2, 2)), ((4,), (1,))],
    ids=str,
)
def test_a_sharded_state_is_read_by_another_number_of_ranks_in_another_layout(
    tmp_path: Path, written_by: tuple[int, ...], read_by: tuple[int, ...]
) -> None:
    def ranks(mesh: tuple[int, ...]) -> int:
        return mesh[0] * (mesh[1] if len(mesh) > 1 else 1)

    staged = run_group(save_sharded, ranks(written_by), str(tmp_path), written_by)
    full = sum(tensor.nbytes for tensor in full_tensors().values())
    assert sum(staged) == full, "every byte is written by one rank"
    run_group(load_sharded, ranks(read_by), str(tmp_path), read_by)
    with open_store(f"file://{tmp_path}/store") as store, Checkpointer(store, job="job") as checkpointer:
        whole = checkpointer.load()["model"]
    for name, expected in full_tensors().items():
        assert torch.equal(whole[name], expected), "one process reads it as plain tensors"


def train_fsdp(rank: int, size: int, folder: str, steps: tuple[int, int], name: str) -> list[float]:
    """Train from step to step under FSDP2, resuming from and saving to the store; return the losses."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    enter_group(rank, size, folder, name)
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Linear(13, 31), torch.nn.Tanh(), torch.nn.Linear(31, 5))
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (size,))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    with (
        open_store(f"file://{folder}/store") as store,
        Checkpointer(store, job="job", rank=rank, world_size=size, settings=FAST) as checkpointer,
    ):
        for step in range(*steps):
            if step == steps[0] and step:
                take_step(model, optimizer, 0)  # makes the optimizer's state, to be filled
                states = get_state_dict(model, optimizer)
                checkpointer.load(into={"model": states[0], "optimizer": states[1]})
                set_state_dict(model, optimizer, model_state_dict=states[0], optim_state_dict=states[1])
            losses.append(take_step(model, optimizer, step))
        states = get_state_dict(model, optimizer)
        checkpointer.save(steps[1], {"model": states[0], "optimizer": states[1]}, fence=steps[1])
        checkpointer.wait()
    dist.barrier()
    dist.destroy_process_group()
    return losses


def take_step(model: Any, optimizer: Any, step: int) -> float:
    inputs = torch.linspace(-1, 1 + step, 6 * 13).reshape(6, 13)
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_an_fsdp2_training_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    apart, together = tmp_path / "apart", tmp_path / "together"
    for folder in (apart, together):
        folder.mkdir()
    expected = run_group(train_fsdp, 2, str(together), (0, 6), "all")[0]
    first = run_group(train_fsdp, 3, str(apart), (0, 3), "first")[0]
    second = run_group(train_fsdp, 2, str(apart), (3, 6), "second")[0]
    assert first + second == pytest.approx(expected, rel=1e-4)
