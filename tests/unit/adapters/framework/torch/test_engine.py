"""The step engine in a world of one: what a step does to gradients, generators and buffers, and how it is undone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elastic_train.adapters.framework.torch.engine import TorchStepEngine
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.errors import StateNotRestorable, UsageError
from elastic_train.ports import StepPlan

PLAN = StepPlan(step=0, seed=7, samples=4, global_samples=4)


def make(model: nn.Module, alone: TorchGroup, **others: Any) -> TorchStepEngine:
    engine = TorchStepEngine({"model": model, **others})
    engine.attach(alone)
    return engine


def inputs() -> torch.Tensor:
    return torch.arange(8.0).reshape(4, 2) / 8


def take_step(engine: TorchStepEngine, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    engine.begin(PLAN)
    engine.backward(model(inputs()).square().mean(), 4, last=True)
    engine.reduce([])
    optimizer.step()
    engine.commit()


def snapshot(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: snapshot(inner) for key, inner in value.items()}
    return [snapshot(inner) for inner in value] if isinstance(value, list) else value


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right)


class TestGradients:
    def test_they_are_the_mean_over_the_global_batch_whatever_the_parts(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 3)
        engine = make(model, alone)
        engine.begin(PLAN)
        for part in (slice(0, 1), slice(1, 4)):
            loss = model(inputs()[part]).square().mean()
            assert engine.backward(loss, part.stop - part.start, last=part.stop == 4).item() == loss.item()
        engine.reduce([])
        assert model.weight.grad is not None
        ours = model.weight.grad.clone()
        (theirs,) = torch.autograd.grad(model(inputs()).square().mean(), [model.weight])
        torch.testing.assert_close(ours, theirs)

    def test_zero_grad_between_parts_loses_nothing(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        engine = make(model, alone, optimizer=optimizer)
        engine.begin(PLAN)
        for sample in range(4):
            optimizer.zero_grad()
            engine.backward(model(inputs()[sample : sample + 1]).mean(), 1, last=sample == 3)
        engine.reduce([])
        torch.testing.assert_close(model.weight.grad, inputs().mean(0, keepdim=True))

    def test_a_change_between_parts_is_refused_with_what_to_do(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        engine = make(model, alone, optimizer=optimizer)
        engine.begin(PLAN)
        engine.backward(model(inputs()).mean(), 2, last=False)
        optimizer.zero_grad(set_to_none=False)
        with pytest.raises(UsageError, match="after the loop"):
            engine.backward(model(inputs()).mean(), 2, last=True)

    def test_zero_grad_before_the_first_part_is_fine_in_both_ways(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = make(model, alone, optimizer=optimizer)
        for to_none in (True, False):
            engine.begin(PLAN)
            optimizer.zero_grad(set_to_none=to_none)
            engine.backward(model(inputs()).mean(), 4, last=True)
            engine.reduce([])
            torch.testing.assert_close(model.weight.grad, inputs().mean(0, keepdim=True))
            engine.commit()

    def test_untouched_parameters_have_none_and_the_others_keep_theirs(self, alone: TorchGroup) -> None:
        model: Any = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        engine = make(model, alone, optimizer=optimizer)
        before = model["unused"].weight.detach().clone()
        for use in ("used", "used", "unused"):
            engine.begin(PLAN)
            engine.backward(model[use](inputs()).mean(), 4, last=True)
            engine.reduce([])
            has = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
            assert has == {name: name.startswith(use + ".") for name in has}
            optimizer.step()
            engine.commit()
            if use == "used":
                assert torch.equal(model["unused"].weight, before)  # weight decay spares it too

    def test_freezing_and_unfreezing_takes_effect_at_the_next_step(self, alone: TorchGroup) -> None:
        model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = make(model, alone, optimizer=optimizer)
        for frozen in (False, True, False):
            model[0].requires_grad_(not frozen)
            before = snapshot(model.state_dict())
            take_step(engine, model, optimizer)
            assert (model[0].weight.grad is None) == frozen
            assert torch.equal(model[0].weight, before["0.weight"]) == frozen
            assert not torch.equal(model[1].weight, before["1.weight"])

    def test_shared_parameters_get_the_sum(self, alone: TorchGroup) -> None:
        model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        engine = make(model, alone)
        engine.begin(PLAN)
        engine.backward(model(inputs()).square().mean(), 4, last=True)
        engine.reduce([])
        assert model[0].weight.grad is not None
        ours = model[0].weight.grad.clone()
        (theirs,) = torch.autograd.grad(model(inputs()).square().mean(), [model[0].weight])
        torch.testing.assert_close(ours, theirs)

    def test_parameters_of_several_types_and_memory_formats(self, alone: TorchGroup) -> None:
        convolution: Any = nn.Conv2d(3, 4, 2)
        convolution.to(memory_format=torch.channels_last)
        model: Any = nn.Sequential(convolution, nn.Flatten(), nn.Linear(4, 2).double())
        engine = make(model, alone)
        engine.begin(PLAN)

        def loss() -> Any:
            image = torch.arange(12.0).reshape(1, 3, 2, 2)
            return model[2](model[1](model[0](image)).double()).square().mean()

        engine.backward(loss(), 4, last=True)
        engine.reduce([])
        assert model[0].weight.grad is not None
        assert model[0].weight.grad.is_contiguous(memory_format=torch.channels_last)
        ours = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        theirs = torch.autograd.grad(loss(), list(model.parameters()))
        torch.testing.assert_close(ours, list(theirs))

    @pytest.mark.parametrize("optimizer_options", [{"fused": True}, {"foreach": True}, {"capturable": False}])
    def test_optimizers_of_every_kind_step_on_them(self, alone: TorchGroup, optimizer_options: dict[str, Any]) -> None:
        model, plain = nn.Linear(2, 3), nn.Linear(2, 3)
        plain.load_state_dict(model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **optimizer_options)
        theirs = torch.optim.AdamW(plain.parameters(), lr=0.1, **optimizer_options)
        engine = make(model, alone, optimizer=optimizer)
        for _ in range(3):
            take_step(engine, model, optimizer)
            theirs.zero_grad()
            plain(inputs()).square().mean().backward()
            theirs.step()
        torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()))


class TestMistakes:
    def test_a_plain_backward_is_found(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1)
        engine = make(model, alone)
        take_step(engine, model, torch.optim.SGD(model.parameters(), lr=0.0))
        engine.begin(PLAN)
        model(inputs()).mean().backward()
        with pytest.raises(UsageError, match=r"step\.backward\(loss\)"):
            engine.reduce([])

    @pytest.mark.parametrize("loss", [torch.ones(2, requires_grad=True), torch.ones(1), 1.0])
    def test_a_loss_without_a_gradient_or_of_several_elements_is_refused(self, alone: TorchGroup, loss: Any) -> None:
        engine = make(nn.Linear(1, 1), alone)
        engine.begin(PLAN)
        with pytest.raises(UsageError):
            engine.backward(loss, 4, last=True)

    def test_a_parameter_that_belongs_to_no_module_is_named(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1)
        optimizer = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(5))], lr=0.1)
        with pytest.raises(UsageError, match=r"optimizer: a parameter of shape \[5\]"):
            make(model, alone, optimizer=optimizer)

    def test_a_parameter_added_later_is_reduced_if_its_module_is_known(self, alone: TorchGroup) -> None:
        model: Any = nn.Sequential(nn.Linear(2, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = make(model, alone, optimizer=optimizer)
        take_step(engine, model, optimizer)
        model.append(nn.Linear(2, 1))
        optimizer.add_param_group({"params": model[1].parameters()})
        take_step(engine, model, optimizer)
        assert model[1].weight.grad is not None

    def test_sparse_gradients_are_refused_by_name(self) -> None:
        with pytest.raises(StateNotRestorable, match=r"model\.0: sparse"):
            TorchStepEngine({"model": nn.Sequential(nn.Embedding(3, 2, sparse=True))})

    def test_an_object_without_state_is_refused_by_name(self) -> None:
        with pytest.raises(StateNotRestorable, match="thing: a object"):
            TorchStepEngine({"thing": object()})


class TestGenerators:
    def test_a_step_seeds_all_of_them(self, alone: TorchGroup) -> None:
        engine = make(nn.Linear(1, 1), alone)

        def draw(seed: int) -> tuple[float, float, float]:
            engine.begin(StepPlan(0, seed, 1, 1))
            return torch.rand(1).item(), float(np.random.rand()), random.random()

        assert draw(1) == draw(1)
        assert all(one != other for one, other in zip(draw(1), draw(2), strict=True))


class TestRollback:
    def test_it_undoes_what_the_forward_pass_did_to_buffers(self, alone: TorchGroup) -> None:
        model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = make(model, alone, optimizer=optimizer)
        for _ in range(3):
            before = snapshot(model.state_dict())
            engine.begin(PLAN)
            engine.backward(model(inputs()).mean(), 4, last=True)
            assert not same(snapshot(model.state_dict()), before)
            engine.rollback()
            assert same(snapshot(model.state_dict()), before)
            assert engine.intact
            take_step(engine, model, optimizer)

    def test_it_puts_back_a_buffer_that_was_replaced(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1)
        model.register_buffer("count", torch.zeros(1))
        count = model.count
        engine = make(model, alone)
        engine.begin(PLAN)
        model.count = model.count + 1
        engine.rollback()
        assert model.count is count
        assert count.item() == 0

    def test_a_step_of_two_phases_is_undone_after_the_first_optimizer_has_moved(self, alone: TorchGroup) -> None:
        """As a GAN's: the discriminator is updated, then the generator's reduction breaks."""
        generator, discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
        optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.1)
        optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer_d, step_size=1)
        items = {"generator": generator, "discriminator": discriminator, "g": optimizer_g, "d": optimizer_d}
        engine = TorchStepEngine({**items, "scheduler": scheduler, "extra": {"seen": 0}})
        engine.attach(alone)

        def first_phase() -> None:
            engine.begin(PLAN)
            engine.backward(discriminator(generator(inputs()).detach()).mean(), 4, last=True)
            engine.reduce([])
            optimizer_d.step()
            scheduler.step()

        for _ in range(3):
            before = snapshot(engine.export())
            first_phase()
            engine.backward(discriminator(generator(inputs())).mean(), 4, last=True)
            engine.rollback()
            assert same(snapshot(engine.export()), before)
            assert engine.intact
            first_phase()
            engine.backward(discriminator(generator(inputs())).mean(), 4, last=True)
            engine.reduce([])
            optimizer_g.step()
            engine.commit()
            assert not same(snapshot(engine.export()), before)

    def test_the_second_phase_sees_only_its_own_gradients(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1, bias=False)
        engine = make(model, alone)
        engine.begin(PLAN)
        engine.backward(model(inputs()).mean(), 4, last=True)
        engine.reduce([])
        engine.backward(3 * model(inputs()).mean(), 4, last=True)
        engine.reduce([])
        torch.testing.assert_close(model.weight.grad, 3 * inputs().mean(0, keepdim=True))

    def test_a_phase_without_a_backward_pass_has_no_gradients(self, alone: TorchGroup) -> None:
        model: Any = nn.Linear(2, 1, bias=False)
        engine = make(model, alone)
        engine.begin(PLAN)
        engine.backward(model(inputs()).mean(), 4, last=True)
        engine.reduce([])
        engine.reduce([])
        assert model.weight.grad is None

    def test_a_step_that_cannot_be_undone_any_more_leaves_the_state_void(self, alone: TorchGroup) -> None:
        """One optimizer step in a program that was known to have one phase, and then something breaks."""
        model: Any = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = make(model, alone, optimizer=optimizer)
        take_step(engine, model, optimizer)
        engine.begin(PLAN)
        engine.backward(model(inputs()).mean(), 4, last=True)
        engine.reduce([])
        optimizer.step()
        engine.rollback()
        assert not engine.intact

    def test_without_an_open_step_it_does_nothing(self, alone: TorchGroup) -> None:
        engine = make(nn.Linear(1, 1), alone)
        engine.rollback()
        assert engine.intact


class TestEvaluation:
    def test_modules_are_in_evaluation_mode_and_then_as_they_were(self, alone: TorchGroup) -> None:
        model: Any = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
        model[1].eval()
        engine = make(model, alone)
        with engine.evaluation():
            assert not any(part.training for part in model.modules())
            assert not torch.is_grad_enabled()
        assert [part.training for part in model.modules()] == [True, True, False]
