"""Decide a whole dataset again from its stored scores, without a GPU and without Ray.

The new criteria hold from then on: samples of later runs are decided by them too, whatever their specs say
(`publish.spec_in_force`), until the next refilter. Commits do not change, so returning to earlier criteria restores the
earlier decisions and files. Nothing is planned: a sample that is rejected now gets no new seed, and one that was
rejected when it was made got its new seed then. That sample has no point cloud. If it is kept now and clouds are stored
as files, its cloud is made from the stored depth.

If a version with these criteria exists already, its decisions stand. Otherwise all samples are decided in the order of
the plan, whichever sample won before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jointdit.errors import SpecError
from pipelines.dataset import about
from pipelines.dataset.anew import Anew
from pipelines.dataset.decide import DecidedShard, with_standing
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.publish import Decision, publish_decision
from pipelines.dataset.settling import Settling, memory_for
from pipelines.dataset.withheld import open_rows
from pipelines.ledger.before import Before
from pipelines.ledger.changes import SHARDS_AT_ONCE
from pipelines.ledger.counted import Uncovered, counted_shards
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.versions import Version, require_latest
from pipelines.spec.file import apply_overrides
from pipelines.spec.job import JobSpec, load_spec
from pipelines.store.joins import joins
from pipelines.store.shelf import Shelf, chunks_of
from pipelines.store.storage import Storage

SETTABLE = ("quality.filters", "quality.keep_best", "quality.calibration")
TAKEN = ("filters", "keep_best", "calibration", "calibrated")  # keys of another spec's quality section


@dataclass(frozen=True)
class Refiltered:
    """What `jointdit refilter` did."""

    output: str
    before: Version
    version: Version  # equal to `before` where nothing changed
    moved: dict[str, int]  # "kept -> rejected" -> samples
    rewritten: tuple[str, ...]  # shards that have other tables than in `before`
    without_points: int  # kept samples that were rejected when made and have no stored image to make a cloud from

    @property
    def is_new(self) -> bool:
        """Whether a version was published."""
        return self.version.number != self.before.number


def refilter(uri: str, overrides: Sequence[str] = (), spec_file: Path | None = None) -> Refiltered:
    """Publish a version with other criteria: those of the latest version, or of a spec, with overrides on top.

    Raises:
        SpecError: an override of another key, or an invalid filter.
        PermanentError: the job is not finished, or samples lack a score that the criteria use.
    """
    storage = open_output(uri)
    ledger = Ledger(storage)
    ledger.read_job()
    require_latest(storage)
    work = Refilter(overrides, spec_file)
    version, is_new = publish_decision(storage, ledger, work.decide, is_partial)
    assert version is not None, "versions are never deleted"
    about.refresh(storage, ledger)
    return Refiltered(
        output=storage.uri,
        before=work.before,
        version=version,
        moved=dict(sorted(work.moved.items())) if is_new else {},
        rewritten=tuple(_rewritten(storage, work.before, version, work.changed)) if is_new else (),
        without_points=_without_points(storage, version, work.came_back),
    )


def is_partial(latest: Version | None) -> bool:
    """Return whether the latest version is partial. Then the next one may be partial too."""
    return latest is not None and latest.is_partial


def _rewritten(storage: Storage, before: Version, version: Version, changed: Sequence[str]) -> Iterator[str]:
    """Yield those of the changed shards that have other tables than before."""
    for shards in chunks_of(changed, SHARDS_AT_ONCE):
        old, new = (Before(storage, each).shards(shards) for each in (before, version))
        yield from (shard for shard in shards if shard not in old or old[shard].files != new[shard].files)


def _without_points(storage: Storage, version: Version, came_back: Mapping[str, int]) -> int:
    """Return how many samples that were rejected when made have no cloud. `came_back`: shard -> such kept samples."""
    if not version.spec.output.points.as_files or not came_back:
        return 0
    clouds = 0
    for shards in chunks_of(sorted(came_back), SHARDS_AT_ONCE):
        found = Before(storage, version).shards(shards).values()
        clouds += sum(len(file.clouds) for shard in found for file in shard.files)
    return sum(came_back.values()) - clouds


class Refilter:
    """The decision of one refilter, repeated on top of whichever version is the latest, and its statistics."""

    before: Version
    moved: Counter[str]  # "kept -> rejected" -> samples
    changed: list[str]  # shards with another decision
    came_back: Counter[str]  # shard -> kept samples that were rejected when they were made

    def __init__(self, overrides: Sequence[str], spec_file: Path | None) -> None:
        self.overrides, self.spec_file = overrides, spec_file

    def decide(self, work: Uncovered) -> Decision:
        """Decide all samples by their stored scores and the criteria of the latest version with overrides on top."""
        latest = work.before.latest
        assert latest is not None, "versions are never deleted"
        spec = criteria_spec(latest, self.overrides, self.spec_file)
        return Decision(self._changed(work, spec), spec, Criteria.of(spec.quality), is_refilter=True)

    def _changed(self, work: Uncovered, spec: JobSpec) -> Iterator[list[DecidedShard]]:
        """Yield the shards whose decisions differ from the latest version, and new ones, in the order of the plan."""
        assert work.before.latest is not None
        self.before, self.moved, self.changed, self.came_back = work.before.latest, Counter(), [], Counter()
        criteria, storage = Criteria.of(spec.quality), work.ledger.storage
        waiting = open_rows(spec, work) if work.is_partial and criteria.keep_best is not None else ()
        with joins(memory_for(criteria)) as connection, Shelf[DecidedShard]() as new:
            anew = Anew(Settling(connection), storage, criteria, waiting)
            known: set[str] = set()
            for counted in counted_shards(work):
                shards = with_standing(work, counted)
                known.update(shard.entry.shard.id for shard in shards)
                new.add(shards)
                anew.add_new(shards)
            if not work.before.is_old:  # an old version has no segments, so all its shards are new
                for covered in chunks_of((s for s in work.before.all_shards() if s.shard not in known), SHARDS_AT_ONCE):
                    anew.add_covered(covered)
            anew.settle(spec.task)
            self.moved, self.came_back = anew.moved(), anew.came_back()
            for decided in anew.changed(work, new):
                self.changed += [shard.entry.shard.id for shard in decided]
                yield decided


def criteria_spec(version: Version, overrides: Sequence[str], spec_file: Path | None) -> JobSpec:
    """Return the spec of a version with other criteria. Raises SpecError for an override of another key."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not any(key == name or key.startswith(f"{name}.") for name in SETTABLE):
            raise SpecError(f"--set {key} cannot be changed by refilter: set {' or '.join(SETTABLE[:2])}.")
    given_before = version.recorded_spec
    quality = dict(given_before.get("quality", {}))
    if spec_file is not None:
        given = load_spec(spec_file).as_given().get("quality", {})
        for name in TAKEN:
            quality.pop(name, None)
            if name in given:
                quality[name] = given[name]
    return load_spec(apply_overrides({**given_before, "quality": quality}, overrides))
