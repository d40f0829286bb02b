"""Problems that the account of a history finds, and how they name files and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.chaos.ledger_account import Identity, Published

OUTCOMES = ("kept", "rejected", "quarantined")


@dataclass(frozen=True)
class Problem:
    """A violated rule; `kind` distinguishes faults when a history is minimized."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def revised(before: Published, after: Published) -> Iterator[Problem]:
    """Find decisions that changed in the next version although no refilter set other criteria."""
    if before.refilter != after.refilter:
        return
    now = after.decisions
    for key, outcome in before.decisions.items():
        if now.get(key, outcome) != outcome:
            yield Problem(
                "revised", f"{key[0]} was {outcome} in version {before.number}, is {now[key]} in {after.number}."
            )


def check_sums(version: Published) -> Iterator[Problem]:
    """Check that each id occurs once, and the numbers of samples."""
    for name, times in Counter(row["id"] for row in version.outcomes).items():
        if times > 1:
            yield Problem("doubled", f"version {version.number}: {times} samples have the id {name}.")
    best = version.fields["criteria"].get("keep_best") if version.refilter else None
    kept = Counter(row["source"] for row in version.outcomes if row["outcome"] == "kept")
    if best and max(kept.values(), default=0) > best["k"]:
        yield Problem("criteria", f"version {version.number} keeps more than {best['k']} samples of a row.")
    ends = Counter(row["outcome"] for row in version.outcomes)
    if {outcome: ends[outcome] for outcome in OUTCOMES} != version.fields["counts"]:
        yield Problem("counts", f"version {version.number} counts {version.fields['counts']}, has {dict(ends)}.")


def short(uri: str) -> str:
    """Return the last two parts of an address."""
    return "/".join(uri.split("/")[-2:])


def shown(identity: Identity) -> str:
    """Name a sample."""
    return f"sample {identity[3]} of row {identity[2]} of {short(identity[0])}"
