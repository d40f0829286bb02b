"""The plot of a history: operations drawn from its seed and number.

Each operation contains everything it needs, also its seed, so that leaving out one does not change the others.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.steps import Death, Failure
from tests.chaos.world import CHANGES

WORK = {"run": 7, "retry": 2, "refilter": 1.5, "prune": 0.5, "gc": 0.5, "validate": 0.5, "publish": 2, "together": 8}
WORK_TOGETHER = {"run": 3, "retry": 0.7, "refilter": 3, "prune": 1.5, "gc": 2, "publish": 2}
CHANGE = dict(zip(CHANGES, (2, 1.5, 1, 1.5, 0.7, 1, 1.5, 0.4, 0.3, 1, 1, 1, 1), strict=True))
FAVOURS = (0.2, 1, 1, 4)  # weights of kinds of operations, drawn for each history
CHANGES_SHARES = (0.15, 0.35, 0.5)  # share of operations that change the input
BACK_AND_FORTH = 0.15  # share of histories that alternate refilter criteria while versions are pruned


@dataclass(frozen=True)
class Operation:
    """One operation; `parts` run concurrently, interleaved by the seed."""

    kind: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    death: Death | None = None
    failure: Failure | None = None
    parts: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        words = [f"{name}={value!r}" for name, value in self.settings.items()]
        if self.death:
            words.append(f"killed {'after' if self.death.after else 'before'} step {self.death.step}")
        if self.failure:
            name, when = errno.errorcode[self.failure.errno], "after" if self.failure.after else "at"
            words.append(f"{name} {when} step {self.failure.step}, {self.failure.times} times")
        if self.parts:
            return "concurrent: " + " | ".join(map(str, self.parts)) + f" (seed {self.seed})"
        return f"{self.kind}({', '.join(words)}) (seed {self.seed})"


@dataclass(frozen=True)
class Plot:
    """A whole history: the job and its operations."""

    seed: int  # of the initial input
    samples_per_row: int
    operations: tuple[Operation, ...]


def draw_plot(seed: int, number: int) -> Plot:
    """Draw the history of a seed and number."""
    draw = random.Random(f"{seed}/{number}")
    theme = Theme.draw(draw)
    operations = [theme.work(draw, "run")]
    for place in range(draw.randint(14, 24)):
        operations.append(theme.operation(random.Random(f"{seed}/{number}/{place}")))
    return Plot(draw.getrandbits(48), draw.choice([1, 1, 2]), tuple(operations))


@dataclass(frozen=True)
class Theme:
    """The theme of one history: weights of its operations, and the criteria it alternates."""

    favours: Mapping[str, float]
    changes: float
    is_back_and_forth: bool
    qualities: tuple[dict[str, Any], ...]

    @classmethod
    def draw(cls, draw: random.Random) -> Theme:
        favours = {kind: draw.choice(FAVOURS) for kind in (*WORK, *CHANGES)}
        changes, is_back_and_forth = draw.choice(CHANGES_SHARES), draw.random() < BACK_AND_FORTH
        return cls(favours, changes, is_back_and_forth, tuple(_draw_quality(draw) for _ in range(3)))

    def operation(self, draw: random.Random) -> Operation:
        """Draw one operation: a change of the input, work, or several of them concurrently."""
        if draw.random() < self.changes:
            return self.change(draw)
        kind = self._kind(draw, WORK)
        if self.is_back_and_forth:
            kind = draw.choice(["run", "refilter", "refilter", "together", "together"])
        if kind != "together":
            return self.work(draw, kind)
        seed = draw.getrandbits(48)
        kinds = [self._kind(draw, WORK_TOGETHER) for _ in range(draw.choice([2, 3]))]
        if self.is_back_and_forth:
            kinds = ["refilter", "prune"]  # refilter to the criteria of a version that is pruned meanwhile
        parts = [self.work(draw, part, rarely=0.08) for part in kinds]
        parts += [self.change(draw) for _ in range(draw.choice([0, 0, 1, 2]))]
        return Operation("together", seed, parts=tuple(parts))

    def change(self, draw: random.Random) -> Operation:
        """Draw a change of the input."""
        return Operation(self._kind(draw, CHANGE), draw.getrandbits(48))

    def work(self, draw: random.Random, kind: str, rarely: float = 0.2) -> Operation:
        """Draw work of a kind; with probability `rarely` it is killed, or half as likely its store fails."""
        seed, settings = draw.getrandbits(48), self._settings(draw, kind)
        death = failure = None
        if draw.random() < rarely:
            death = Death(_draw_step(draw), draw.random() < 0.5)
        elif draw.random() < rarely / 2:
            number = draw.choice([errno.EIO, errno.EIO, errno.ENOSPC])
            failure = Failure(_draw_step(draw), number, draw.choice([1, 1, 2, 5]), draw.random() < 0.4)
        return Operation(kind, seed, {name: value for name, value in settings.items() if value}, death, failure)

    def _kind(self, draw: random.Random, weights: Mapping[str, float]) -> str:
        return draw.choices(list(weights), [weight * self.favours[kind] for kind, weight in weights.items()])[0]

    def _settings(self, draw: random.Random, kind: str) -> dict[str, Any]:
        """Draw settings; falsy ones are off. `later`: gc treats pruned files as a day old."""
        if kind == "run":
            return {
                "shards": draw.choice([None, None, None, 1, 2]),
                "regenerate": draw.choice([0, 0, 0, 1, 2]),
                "quality": draw.choice(self.qualities) if draw.random() < 0.5 else {},
                "retain": None if self.is_back_and_forth else draw.choice([None, None, None, 2]),
                "later": draw.random() < 0.7,
                "shard_rows": draw.choice([2, 3, 4]),
                "heals": draw.random() < 0.15,
                "describes": draw.random() < 0.07,
                "publishes": draw.random() < 0.3,
            }
        if kind == "retry":
            outcomes = draw.choice([["quarantined"], ["quarantined"], ["rejected"], ["quarantined", "rejected"]])
            return {"outcomes": outcomes}
        if kind == "refilter":
            return {"quality": draw.choice(self.qualities)}
        if kind == "prune":
            return {"retain": draw.choice([2, 2, 3]), "later": draw.random() < 0.7}
        return {"hours": draw.choice([0, 0, 0, 24])} if kind == "gc" else {}


def _draw_step(draw: random.Random) -> int:
    return int(2 ** draw.uniform(0, 8))


def _draw_quality(draw: random.Random) -> dict[str, Any]:
    """Draw the part of the section `quality` that `refilter` can set."""
    filters: list[dict[str, Any]] = [{"kind": "depth_range", "min_span": draw.choice([0.05, 0.5, 0.8])}]
    if draw.random() < 0.4:
        filters.append({"kind": "near_duplicate"})
    best = {"k": 1, "by": "depth_span", "order": draw.choice(["highest", "lowest"])}
    return {"filters": filters, **({"keep_best": best} if draw.random() < 0.4 else {})}
