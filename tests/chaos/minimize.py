"""Minimize a failing history: leave out operations, then parts, kills and settings of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.chaos.plots import Operation, Plot

MAX_TRIES = 200


def smallest(plot: Plot, fails: Callable[[Plot], bool]) -> Plot:
    """Return the smallest plot that still fails."""
    tries = Tries(fails)
    operations = _fewer(plot, tries)
    plot = replace(plot, operations=operations)
    is_smaller = True
    while is_smaller and tries.left:
        is_smaller = False
        for place in range(len(plot.operations)):
            for simpler in _simpler(plot.operations[place]):
                shorter = _with(plot, place, simpler)
                if tries(shorter):
                    plot, is_smaller = shorter, True
                    break
            if is_smaller:
                break
    return plot


class Tries:
    """Whether a plot fails, for at most MAX_TRIES plots."""

    def __init__(self, fails: Callable[[Plot], bool]) -> None:
        self.fails, self.left = fails, MAX_TRIES

    def __call__(self, plot: Plot) -> bool:
        if not self.left:
            return False
        self.left -= 1
        return self.fails(plot)


def _fewer(plot: Plot, fails: Tries) -> tuple[Operation, ...]:
    """Leave out sequences of operations by delta debugging, from half of them down to single ones."""
    operations = list(plot.operations)
    size = max(1, len(operations) // 2)
    while True:
        place, has_shrunk = 0, False
        while place < len(operations):
            rest = operations[:place] + operations[place + size :]
            if fails(replace(plot, operations=tuple(rest))):
                operations, has_shrunk = rest, True
            else:
                place += size
        if size == 1 and not has_shrunk:
            return tuple(operations)
        size = size if has_shrunk and size == 1 else max(1, size // 2)


def _simpler(operation: Operation) -> Iterator[tuple[Operation, ...]]:
    """Yield simpler replacements of an operation."""
    if operation.parts:
        for place in range(len(operation.parts)):
            rest = operation.parts[:place] + operation.parts[place + 1 :]
            yield (rest[0],) if len(rest) == 1 else (replace(operation, parts=rest),)
        yield operation.parts  # sequential in place of concurrent
        for place, part in enumerate(operation.parts):
            for (simpler,) in _simpler(part):
                parts = (*operation.parts[:place], simpler, *operation.parts[place + 1 :])
                yield (replace(operation, parts=parts),)
    if operation.death:
        yield (replace(operation, death=None),)
    if operation.failure:
        yield (replace(operation, failure=None),)
    for name in operation.settings:
        if name not in ("outcomes", "retain") or operation.kind == "run":
            yield (replace(operation, settings={k: v for k, v in operation.settings.items() if k != name}),)


def _with(plot: Plot, place: int, operations: tuple[Operation, ...]) -> Plot:
    return replace(plot, operations=(*plot.operations[:place], *operations, *plot.operations[place + 1 :]))
