"""The step engine: gradients, reduction, state and rollback of the objects in a TrainState."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from elastic_train.adapters.framework.torch.binding import (
    check_loss,
    distinct_parameters,
    refuse_sparse_gradients,
    refuse_strangers,
)
from elastic_train.adapters.framework.torch.buffers import Buffers
from elastic_train.adapters.framework.torch.description import Description, check_items, describe
from elastic_train.adapters.framework.torch.digests import state_digests
from elastic_train.adapters.framework.torch.generators import seed_generators
from elastic_train.adapters.framework.torch.gradients import GradientBuckets
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.reducer import GradientReducer
from elastic_train.adapters.framework.torch.rollback import Undo
from elastic_train.adapters.framework.torch.sharded import ShardedStep
from elastic_train.adapters.framework.torch.state import bind_item
from elastic_train.adapters.framework.torch.transfer import receive_tensors, send_tensors
from elastic_train.errors import GroupBroken, UsageError
from elastic_train.ports import Group, StepPlan

_MOST_CONTROLS = 64
_PROTECT = "protect"
_OVERLAP = "overlap"


class TorchStepEngine:
    """Steps of a torch program.

    A step has one or more phases: each is some backward passes and one `reduce`. Most programs have one. A GAN's has
    two (the user's loop runs twice in one step, with an `optimizer.step()` after each); there an optimizer has moved
    before the second reduction, and if that fails all has to be put back. The same holds where user code has
    collectives of its own. The first step is therefore begun with a copy of the state, and so is every step of a
    program that was seen to do either.

    Gradients are set to zero when a phase begins. `reduce` leaves the mean over the global batch in `.grad`; a
    parameter that no worker touched has `.grad = None`, as in plain torch.
    """

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = {name: bind_item(name, value) for name, value in items.items()}
        self._modules = {name: value for name, value in items.items() if isinstance(value, torch.nn.Module)}
        self._optimizers = {name: value for name, value in items.items() if isinstance(value, torch.optim.Optimizer)}
        refuse_sparse_gradients(self._modules)
        self._parameters = distinct_parameters(self._modules)
        self._buffers = Buffers(list(self._modules.values()))
        self._undo = Undo(self._items)
        self._group: TorchGroup | None = None
        self._plan: StepPlan | None = None
        self._passes = 0  # backward passes in this phase
        self._phase = 0
        self._phase_open = False
        self._protect: bool | None = None  # whether steps need a copy of the state; None: not known yet
        self._may_overlap = True
        self._reduced_at: list[int] = []  # versions of the parameters when the last phase had been reduced
        self._others_calls = 0  # collectives of user code, when the step began
        self._owned = -1  # parameters in the optimizers, when last looked
        self._trainable: list[bool] = []
        self._whole = False  # there is a state here that is worth keeping while another is received
        self._intact = True
        self._gradients = GradientBuckets([], 0)
        self._reducer = GradientReducer(self._gradients)
        self._sharded: ShardedStep | None = None  # in steps that keep logical shards apart
        self._look_for_changes()

    @property
    def intact(self) -> bool:
        """Return whether the state here is that of a whole step: not after a transfer or rollback that broke off."""
        return self._intact

    # ---- steps

    def attach(self, group: Group | None) -> None:
        """Use this group from now on (None: no world; nothing may be reduced)."""
        if group is not None and not isinstance(group, TorchGroup):
            raise TypeError(f"a torch engine needs a torch group, not a {type(group).__qualname__}")
        self._group = group
        self._reducer.overlap = self._may_overlap
        self._reducer.attach(group)

    def begin(self, plan: StepPlan) -> None:
        """Open a step: zero gradients, seed the generators, remember what a rollback needs.

        Raises:
            UsageError: A parameter was added to an optimizer that belongs to no bound module.
        """
        self._look_for_changes()
        if self._protect is not False:
            self._undo.take()
        self._buffers.begin(everything=self._protect is None)
        self._plan = plan
        self._phase = 0
        if plan.per_shard:
            if self._sharded is None:
                self._sharded = ShardedStep(self._gradients, self._buffers)
                self._reducer.shard_sums = self._sharded.sums
            self._sharded.begin(plan)
        self._others_calls = self._user_collectives()
        self._begin_phase()
        seed_generators(plan.seed)

    def backward(self, loss: torch.Tensor, samples: int, *, last: bool) -> torch.Tensor:
        """Accumulate the gradient of ``loss * samples / global_samples``; return the detached loss.

        On the last part, start reducing.

        Raises:
            GroupBroken: A member is gone.
            UsageError: The loss is not a scalar with a gradient, or gradients were changed between two parts.
        """
        plan = self._open_plan()
        check_loss(loss)
        if not self._phase_open:
            self._begin_phase()
        if self._sharded is not None:
            if samples == 0:
                return loss.detach()  # of a filler, whose shards must stay as good as untouched
            self._sharded.before_backward(last=last)
        self._gradients.install(first=self._passes == 0)
        self._passes += 1
        weight = torch.full_like(loss, samples / plan.global_samples)
        if last:
            self._reducer.arm()
        try:
            torch.autograd.backward((loss,), (weight,))
        finally:
            self._reducer.disarm()
        self._gradients.accumulated()
        return loss.detach()

    def open_part(self, shard: int, samples: int, seed: int) -> None:
        """Come to the next part of a step that keeps logical shards apart: a piece of this shard.

        Args:
            shard: Which. Shards come in order, the parts of each one after the other.
            samples: In this part; 0: it counts for nothing.
            seed: For every generator.
        """
        assert self._sharded is not None
        if not self._phase_open:
            self._begin_phase()
        self._sharded.open_part(shard, samples, seed)

    def seed(self, seed: int) -> None:
        """Seed every generator that user code draws from."""
        seed_generators(seed)

    def reduce(self, control: Sequence[float]) -> list[float]:
        """Complete the reduction of gradients; return `control` summed elementwise (in single precision).

        Raises:
            GroupBroken: A member is gone, or this program's backward passes changed their pattern (the step must be
            run again). UsageError: Gradients were accumulated by ``loss.backward()``.
        """
        plan = self._open_plan()
        group = self._group
        if group is None:
            raise UsageError("no world: gradients cannot be reduced now.")
        if not self._phase_open:
            self._begin_phase()  # this member had nothing to compute in it
        touched = self._gradients.touched()
        if self._passes == 0 and any(touched):
            raise UsageError("gradients were accumulated by loss.backward(). Write step.backward(loss) instead.")
        if group.world_size == 1 and self._sharded is None:
            self._gradients.show(touched)
            summed = list(control)
        else:
            summed = self._reduce_over_world(control, touched, plan, group)
        self._close_phase()
        return summed

    def commit(self) -> None:
        """Close the step: forget what a rollback needs."""
        if self._protect is None:
            self._protect = self._phase > 1 or self._user_collectives() > self._others_calls
        if self._protect:
            self._undo.drop()
        else:
            self._undo.free()
        self._end_step()
        self._whole = self._intact = True

    def rollback(self) -> None:
        """Undo every trace of the open step: parameters, optimizers, buffers, gradients. Without one: do nothing."""
        if self._plan is None:
            return
        self._end_step()
        self._buffers.restore()
        if self._undo.held:
            self._undo.restore()
        elif self._phase and self._versions() != self._reduced_at:
            self._intact = False  # an optimizer has moved, and there is nothing to go back to
            self._protect = True
        self._gradients.zero()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Return a context without gradients, with every model in evaluation mode."""
        modes = [(part, part.training) for module in self._modules.values() for part in module.modules()]
        for module in self._modules.values():
            module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for part, training in modes:
                part.training = training

    def _open_plan(self) -> StepPlan:
        if self._plan is None:
            raise UsageError("step.backward() and the loop over a step's parts belong inside `with step:`.")
        return self._plan

    def _end_step(self) -> None:
        self._plan = None
        if self._sharded is not None:
            self._sharded.end()

    def _begin_phase(self) -> None:
        if self._phase:
            self._protect = True
        self._phase_open = True
        self._passes = 0
        self._gradients.zero()
        self._reducer.begin()
        if self._sharded is not None:
            self._sharded.begin_phase()

    def _close_phase(self) -> None:
        self._phase += 1
        self._phase_open = False
        self._passes = 0
        self._reduced_at = self._versions()

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self._parameters]  # noqa: SLF001  no other way to see a write

    def _user_collectives(self) -> int:
        return 0 if self._group is None else self._group.user_collectives()

    def _reduce_over_world(
        self, control: Sequence[float], touched: list[bool], plan: StepPlan, group: TorchGroup
    ) -> list[float]:
        if len(control) > _MOST_CONTROLS:
            raise UsageError(f"{len(control)} control values; there is room for {_MOST_CONTROLS}.")
        changed = self._buffers.changed() if self._sharded is None else self._sharded.complete()
        numbers = [float(self._reducer.misjudged), *control, *touched, *changed]
        tail = self._gradients.tail[: len(numbers)]
        tail.copy_(torch.tensor(numbers, dtype=tail.dtype))
        self._reducer.finish()
        sums: list[float] = tail.tolist()
        if sums[0]:
            self._may_overlap = self._reducer.overlap = False
            reason = (
                "a gradient was written after its reduction had begun: the step is run again, reducing after backward"
            )
            group.abort(reason)
            raise GroupBroken(reason)
        controls_end = 1 + len(control)
        touched_end = controls_end + len(touched)
        self._gradients.show(sums[controls_end:touched_end])
        changed_by_any = [bool(count) for count in sums[touched_end:]]
        if self._sharded is not None:
            self._sharded.close_phase(changed_by_any, group)
        elif any(changed_by_any):
            self._buffers.average(changed_by_any, plan.samples / plan.global_samples, group)
        return sums[1:controls_end]

    def _look_for_changes(self) -> None:
        """Follow what user code may have changed between two steps: what is frozen, and what the optimizers hold."""
        owned = sum(len(group["params"]) for optimizer in self._optimizers.values() for group in optimizer.param_groups)
        if owned != self._owned:
            refuse_strangers(self._optimizers, self._modules)
            self._parameters = distinct_parameters(self._modules)
            self._rebuild()
            self._owned = owned
        elif [parameter.requires_grad for parameter in self._parameters] != self._trainable:
            self._rebuild()

    def _rebuild(self) -> None:
        """Lay out the buckets for the parameters that are trained now."""
        self._reducer.detach()
        self._trainable = [parameter.requires_grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        self._sharded = None
        self._gradients = GradientBuckets(trained, 1 + _MOST_CONTROLS + len(trained) + len(self._buffers))
        self._reducer = GradientReducer(self._gradients)
        self.attach(self._group)

    # ---- state

    def describe(self) -> bytes:
        """Return structure, dtypes, shapes and small values of the state (msgpack); tensors' bytes not included.

        Raises:
            StateNotRestorable: Something in it cannot be sent; says where.
        """
        return describe(self._items, {_PROTECT: self._protect, _OVERLAP: self._may_overlap})[0].to_bytes()

    def send(self, description: bytes, receiver: int) -> None:
        """Send the state's tensors to the member with that rank, in the order of `description`.

        Any member with the same state may send by the description of any other.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
            StateNotRestorable: The state here is not the one described.
        """
        send_tensors(self._joined_group(), Description.from_bytes(description).sources(self._items), receiver)

    def receive(self, description: bytes, sender: int) -> None:
        """Replace the state by the sender's. All or nothing: a failure half-way raises GroupBroken.

        A worker that has a whole (older) state receives into memory of its own first, as much as the state has, and
        keeps the old one if that fails. A worker that has none yet receives in place; if that fails `intact` is False
        until another `receive` succeeds.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
            StateNotRestorable: The sender's state does not fit the objects bound here; nothing was changed.
        """
        described = Description.from_bytes(description)
        described.check(self._items)
        if self._whole and self._intact:
            tensors = [spec.allocate() for spec in described.specs]
            receive_tensors(self._joined_group(), tensors, sender)
        else:
            self._intact = False
            tensors = described.destinations(self._items)
            receive_tensors(self._joined_group(), tensors, sender)
        self._take_over(described.trees(tensors), keep=True)
        if described.notes[_PROTECT] is not None:
            self._protect = described.notes[_PROTECT]
        self._may_overlap = self._reducer.overlap = self._may_overlap and described.notes[_OVERLAP]

    def export(self) -> dict[str, Any]:
        """Return the state as a tree of tensors and plain values for a checkpoint (no copies)."""
        return {name: item.capture() for name, item in self._items.items()}

    def digests(self) -> dict[str, str]:
        """Return a short digest of every tensor of the state by its path, and of all other values together."""
        return state_digests(self.export())

    def load(self, tree: Mapping[str, Any]) -> None:
        """Replace the state by a tree that `export` made.

        Raises:
            StateNotRestorable: The tree does not fit; says which keys.
        """
        check_items(self._items, tree)
        self._take_over(tree, keep=False)

    def _take_over(self, trees: Mapping[str, Any], *, keep: bool) -> None:
        for name, item in self._items.items():
            item.restore(trees[name], keep=keep)
        self._plan = None
        self._undo.free()
        self._whole = self._intact = True

    def _joined_group(self) -> TorchGroup:
        if self._group is None:
            raise UsageError("no world: state can be neither sent nor received now.")
        return self._group
