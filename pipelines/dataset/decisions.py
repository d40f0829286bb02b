"""Decide where each sample of a version ends: by commit, scores and dataset-wide rules.

    filters           at the sample's commit; by stored scores once `jointdit refilter` set them for the whole dataset
    keep_best         the k best samples of each row among those that passed the filters
    near_duplicate    rejects remaining samples that look like an earlier one

The order is (version that decided first, plan file, position), whatever the order in which shards were made. Decisions
of earlier versions stand, and later samples are compared with them. So a later run never changes an earlier winner: a
sample that joins a full row, or looks like a kept one, is rejected however good it is. A retried sample (plan/retry.py)
is a new one. Nothing is planned here: new seeds replace only what filters rejected at a commit (plan/regeneration.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipelines.ledger.entries import Commit, Outcome
from pipelines.ledger.versions import Key
from pipelines.quality import Filter, KeepBest, NearDuplicate, load_filters
from pipelines.spec.job import QualitySpec

SAME_IMAGE = ("depth", "prepare", "encode")  # tasks where the samples of a row share its image


@dataclass(frozen=True)
class Criteria:
    """By what samples are kept: filters and keep_best."""

    filters: tuple[Filter, ...] = ()
    keep_best: KeepBest | None = None

    @classmethod
    def of(cls, quality: QualitySpec) -> Self:
        """Return the criteria of a spec."""
        return cls(load_filters(quality.filters), quality.keep_best)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the criteria that `to_json` wrote."""
        return cls.of(QualitySpec.model_validate(fields))

    def to_json(self) -> dict[str, Any]:
        """Return all thresholds, including defaults, because another version of the code may have other defaults."""
        filters = [{"kind": filter_.kind, **filter_.model_dump(mode="json")} for filter_ in self.filters]
        return {"filters": filters, "keep_best": self.keep_best and self.keep_best.model_dump(mode="json")}

    @property
    def max_distance(self) -> int | None:
        """The largest distance in bits between the hashes of near-duplicates; None where near-duplicates are kept."""
        return max((f.max_distance for f in self.filters if isinstance(f, NearDuplicate)), default=None)

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores that the criteria use, each once."""
        names = [name for filter_ in self.filters for name in filter_.scores]
        return tuple(dict.fromkeys([*names, self.keep_best.by] if self.keep_best else names))

    @property
    def needs_all(self) -> bool:
        """Whether a decision depends on other samples."""
        return self.keep_best is not None or self.max_distance is not None


@dataclass(frozen=True, slots=True)
class Decided:
    """A sample that counts, and where it ends."""

    id: str
    shard: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    made: Outcome = "kept"  # its outcome in the commit
    made_reasons: tuple[str, ...] = ()
    since: int = 0  # the version whose decision stands; 0: it is decided now

    @property
    def key(self) -> Key:
        """(id, shard), which is unique among all samples that were ever made."""
        return self.id, self.shard


def tables_in(commit: Commit) -> list[tuple[str, str]]:
    """Return (shard, path) of the tables of samples with pixels that a commit names."""
    return [
        (commit.shard, stored.path)
        for stored in commit.objects
        if stored.kind == "table" and stored.outcome != "quarantined"
    ]
