"""State as trees: what travels, what is refused and how it is put back in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from elastic_train.adapters.framework.torch.description import Description, describe
from elastic_train.adapters.framework.torch.engine import TorchStepEngine
from elastic_train.adapters.framework.torch.state import StateItem, bind_item
from elastic_train.adapters.framework.torch.tree import Packer, TensorSpec, flat_memory, unpack
from elastic_train.errors import StateNotRestorable

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(min_value=0, max_value=9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


def travel(value: Any) -> Any:
    packer = Packer()
    return unpack(packer.pack(value), packer.tensors.__getitem__)


@given(plain)
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    arrived = travel(value)
    assert arrived == value
    assert type(arrived) is type(value)


def test_tensors_tuples_counters_sets_and_types_arrive() -> None:
    value = {"a": (torch.ones(2), [torch.zeros(1)]), "c": Counter({3: 2}), "s": {1, 2}, "t": torch.bfloat16}
    arrived = travel(value)
    assert arrived["a"][0] is value["a"][0]  # type: ignore[index]  # a tuple
    assert (arrived["c"], arrived["s"], arrived["t"]) == (value["c"], value["s"], value["t"])
    assert type(arrived["c"]) is Counter


def test_memory_that_is_there_twice_travels_once() -> None:
    tensor = torch.ones(3)
    packer = Packer()
    packer.pack([tensor, tensor.detach(), torch.ones(3), tensor[1:]])
    assert len(packer.tensors) == 3


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {"b": object()}}, r"a\.b"),
        ({"a": [1, {"f": len}]}, r"a\.1\.f"),
        ({"a": torch.ones(2).to_sparse()}, "a"),
        ({"n": 2**70}, "n"),
    ],
)
def test_what_cannot_travel_is_named_by_its_path(value: Any, where: str) -> None:
    with pytest.raises(StateNotRestorable, match=where):
        Packer().pack(value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.arange(10)[::2],
        torch.ones(1).expand(4),
        torch.arange(4, dtype=torch.bfloat16),
        torch.tensor([True, False]),
    ],
)
def test_a_described_tensor_can_be_rebuilt_from_its_bytes(tensor: torch.Tensor) -> None:
    spec = TensorSpec.of(tensor)
    rebuilt = spec.allocate()
    rebuilt.copy_(tensor)
    wire = flat_memory(rebuilt).view(torch.uint8).clone()
    again = spec.allocate()
    flat_memory(again).view(torch.uint8).copy_(wire)
    assert torch.equal(again, tensor)
    assert TensorSpec.of(again) == spec


def trained(seed: int, steps: int = 3, **options: Any) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def hand_over(source: dict[str, Any], target: dict[str, Any], *, in_place: bool) -> None:
    """Do what a transfer does, without a network."""
    mine: dict[str, StateItem] = {name: bind_item(name, value) for name, value in target.items()}
    theirs: dict[str, StateItem] = {name: bind_item(name, value) for name, value in source.items()}
    description, tensors = describe(theirs, {})
    arrived = Description.from_bytes(description.to_bytes())
    arrived.check(mine)
    places = arrived.destinations(mine) if in_place else [spec.allocate() for spec in arrived.specs]
    for place, tensor in zip(places, tensors, strict=True):
        place.copy_(tensor)
    for name, tree in arrived.trees(places).items():
        mine[name].restore(tree, keep=True)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_model_and_optimizer_take_over_another_ones_state(in_place: bool, steps_before: int) -> None:
    model, optimizer = trained(1)
    model[0].requires_grad_(requires_grad=False)
    other, others = trained(2, steps_before, lr=0.5)
    weights = list(other.parameters())
    moments = [state["exp_avg"] for state in others.state.values()]
    hand_over({"m": model, "o": optimizer}, {"m": other, "o": others}, in_place=in_place)
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()))
    mine, theirs = optimizer.state_dict(), others.state_dict()
    torch.testing.assert_close(theirs["state"], mine["state"])
    assert theirs["param_groups"] == mine["param_groups"]
    assert all(old is new for old, new in zip(weights, other.parameters(), strict=True))
    kept = [state["exp_avg"] for state in others.state.values()][: len(moments)]
    assert all(old is new for old, new in zip(moments, kept, strict=True))
    assert not other[0].weight.requires_grad
    assert other[2].weight.requires_grad


def test_a_worker_that_took_over_goes_on_like_the_other() -> None:
    model, optimizer = trained(1)
    other, others = trained(2, 0)
    hand_over({"m": model, "o": optimizer}, {"m": other, "o": others}, in_place=True)
    for network, stepper in ((model, optimizer), (other, others)):
        stepper.zero_grad()
        network(torch.ones(2, 3)).sum().backward()
        stepper.step()
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "multi step": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 2]),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10),
    "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_travel(kind: str) -> None:
    stores: list[tuple[torch.optim.Optimizer, Any]] = []
    for steps in (4, 0):
        _, optimizer = trained(1, 1)
        scheduler = SCHEDULERS[kind](optimizer)
        for _ in range(steps):
            optimizer.step()
            scheduler.step(*([1.0] if kind == "plateau" else []))
        stores.append((optimizer, scheduler))
    (optimizer, scheduler), (others, other) = stores
    hand_over({"s": scheduler, "o": optimizer}, {"s": other, "o": others}, in_place=True)
    assert other.state_dict() == scheduler.state_dict()
    assert others.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_dicts_scalers_and_objects_with_state_travel() -> None:
    class Average:
        def __init__(self) -> None:
            self.value = torch.zeros(2)

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value.clone()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]

    average, other = Average(), Average()
    average.value += 3
    counts: dict[str, Any] = {"seen": 5, "history": [1.0, 2.0], "table": torch.ones(2)}
    others: dict[str, Any] = {"old": 1, "table": torch.zeros(2)}
    table = others["table"]
    scaler: Any = torch.amp.GradScaler("cpu", init_scale=8.0)
    fresh: Any = torch.amp.GradScaler("cpu")
    hand_over({"a": average, "c": counts, "s": scaler}, {"a": other, "c": others, "s": fresh}, in_place=True)
    assert torch.equal(other.value, average.value)
    assert others.keys() == counts.keys()
    assert (others["seen"], others["history"]) == (5, [1.0, 2.0])
    assert torch.equal(others["table"], counts["table"])
    assert others["table"] is table
    assert fresh.get_scale() == 8.0


def test_a_state_that_does_not_fit_changes_nothing_and_names_all_differences() -> None:
    engine = TorchStepEngine({"model": nn.Linear(2, 3), "extra": {}})
    tree = engine.export()
    before = tree["model"]["tensors"]["weight"].clone()
    wrong = {"model": {"tensors": {"weight": torch.ones(3, 3), "gain": torch.ones(1)}, "frozen": []}, "other": 1}
    with pytest.raises(StateNotRestorable) as caught:
        engine.load(wrong)
    for part in (
        "extra is missing",
        "other is unknown",
        "model: bias is missing",
        "gain is unknown",
        "[3, 3], here [3, 2]",
    ):
        assert part in str(caught.value)
    assert torch.equal(tree["model"]["tensors"]["weight"], before)


def test_a_loaded_tree_stays_the_callers_own() -> None:
    model, optimizer = trained(1)
    saved = TorchStepEngine({"m": model, "o": optimizer}).export()
    other, others = trained(2, 0)
    TorchStepEngine({"m": other, "o": others}).load(saved)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    others.zero_grad()
    other(torch.ones(2, 3)).sum().backward()
    others.step()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    first = next(iter(optimizer.state.values()))
    assert all(first["exp_avg"].data_ptr() != state["exp_avg"].data_ptr() for state in others.state.values())
