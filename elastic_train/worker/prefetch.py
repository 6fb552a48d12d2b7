"""Reading ahead of the steps: which pieces are under way, which are kept when the world changes, which are dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from elastic_train.ports import Loader, Piece

Cut = Callable[[int], list[Piece]]
"""Returns the pieces of a step that are this worker's, in its present world, in the order in which they are used."""


class Prefetcher:
    """Serves the pieces of one step after the other, and has the next ones read meanwhile.

    The position and this worker's part may change between any two steps. What was read for pieces that are still to
    come is kept; what is under way for others is dropped when it arrives, at the latest after as many pieces as are
    read ahead. A piece that was served is read again if it is asked for again (its step was aborted): user code may
    have changed the batch.

    Args:
        steps: How many there are.
        open_loader: Opens the loader of a feed.
    """

    def __init__(self, steps: int, open_loader: Callable[[Iterator[Piece]], Loader]) -> None:
        self._steps = steps
        self._cut: Cut = _nothing
        self._place: object = None
        self._step = 0  # the present one
        self._planned: Iterator[Piece] = iter(())
        self._under_way: deque[Piece] = deque()
        self._kept: dict[tuple[int, int, int], Any] = {}
        self._served: set[tuple[int, int, int]] = set()  # of the present step
        self._loader = open_loader(_Feed(self._draw))
        self._loader.start()  # with nothing to read yet: the processes come up while this worker joins

    def begin(self, step: int, place: object, cut: Cut) -> None:
        """Come to a step.

        Args:
            step: Its number; the one after the last, unless something happened.
            place: What `cut` depends on, to be compared.
            cut: As of this place.
        """
        follows = step == self._step + 1 and place == self._place
        self._step, self._place, self._cut = step, place, cut
        self._served.clear()
        self._kept = {name: batch for name, batch in self._kept.items() if name[0] >= step}
        if not follows:
            self._kept = {name: batch for name, batch in self._kept.items() if self._is_to_come(name)}
            self._plan_anew()

    def get(self, piece: Piece) -> Any:
        """Return the batch of a piece of the present step; in their order, and then all of them again if need be.

        Raises:
            Exception: What the user's dataset or collate raised; nothing can be read after it.
        """
        if piece.name in self._served:  # the step is gone through again
            self._served.clear()
            self._plan_anew()
        self._served.add(piece.name)
        if piece.name in self._kept:
            return self._kept.pop(piece.name)
        while True:
            if not self._under_way:
                self._loader.start()  # it drew all there was, or nothing yet
            batch = self._loader.next()
            name = self._under_way.popleft().name
            if name == piece.name:
                return batch
            if self._is_to_come(name):
                self._kept[name] = batch

    def close(self) -> None:
        """End the reader processes and drop what they have read; idempotent."""
        self._loader.close()
        self._planned = iter(())
        self._under_way.clear()
        self._kept.clear()

    def _draw(self) -> Piece:
        """Return the next piece to be read: called by the loader."""
        piece = next(self._planned)
        self._under_way.append(piece)
        return piece

    def _plan_anew(self) -> None:
        """Have read, from the present step on, what is neither here nor under way."""
        known = self._kept.keys() | {piece.name for piece in self._under_way}
        self._planned = self._plan(known)

    def _plan(self, known: set[tuple[int, int, int]]) -> Iterator[Piece]:
        for later in range(self._step, self._steps):
            yield from (piece for piece in self._cut(later) if piece.name not in known)

    def _is_to_come(self, name: tuple[int, int, int]) -> bool:
        step = name[0]
        return step >= self._step and name not in self._served and any(piece.name == name for piece in self._cut(step))


class _Feed:
    """An iterator that runs dry and goes on later."""

    def __init__(self, draw: Callable[[], Piece]) -> None:
        self._draw = draw

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return self._draw()


def _nothing(_: int) -> list[Piece]:
    return []
