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
from dataclasses import dataclass, replace
from pathlib import Path

from jointdit.errors import PermanentError, SpecError
from pipelines.dataset import about
from pipelines.dataset.decide import (
    DecidedShard,
    decisions_in,
    decisions_of,
    hashes_in,
    tables_of,
    with_standing,
)
from pipelines.dataset.decisions import (
    Criteria,
    Decided,
    Facts,
    agree,
    by_scores,
    missing_scores,
    read_facts,
    settle,
    standing_among,
)
from pipelines.dataset.publish import Decision, publish_decision
from pipelines.dataset.withheld import open_rows, withheld_keys
from pipelines.ledger.before import Before
from pipelines.ledger.changes import SHARDS_AT_ONCE
from pipelines.ledger.counted import Uncovered, all_counted_shards, entries_of
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.versions import Key, Version, read_version, require_latest, version_numbers
from pipelines.spec.file import apply_overrides
from pipelines.spec.job import JobSpec, load_spec
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
    work = _Refilter(overrides, spec_file)
    version, is_new = publish_decision(storage, ledger, work.decide, is_partial)
    assert version is not None, "versions are never deleted"
    about.refresh(storage, ledger)
    return Refiltered(
        output=storage.uri,
        before=work.before,
        version=version,
        moved=dict(sorted(work.moved.items())) if is_new else {},
        rewritten=_rewritten(storage, work.before, version, work.changed) if is_new else (),
        without_points=_without_points(storage, version, work.came_back),
    )


def is_partial(latest: Version | None) -> bool:
    """Return whether the latest version is partial. Then the next one may be partial too."""
    return latest is not None and latest.is_partial


def _rewritten(storage: Storage, before: Version, version: Version, changed: Sequence[str]) -> tuple[str, ...]:
    """Return those of the changed shards that have other tables than before."""
    old, new = (Before(storage, each).shards(changed) for each in (before, version))
    return tuple(shard for shard in changed if shard not in old or old[shard].files != new[shard].files)


def _without_points(storage: Storage, version: Version, came_back: Mapping[str, int]) -> int:
    """Return how many samples that were rejected when made have no cloud. `came_back`: shard -> such kept samples."""
    if not version.spec.output.points.as_files or not came_back:
        return 0
    shards = Before(storage, version).shards(list(came_back)).values()
    return sum(came_back.values()) - sum(len(file.clouds) for shard in shards for file in shard.files)


class _Refilter:
    """The decision of one refilter, repeated on top of whichever version is the latest, and its statistics."""

    before: Version
    moved: Counter[str]  # "kept -> rejected" -> samples
    changed: list[str]  # shards with another decision
    came_back: dict[str, int]  # shard -> kept samples that were rejected when they were made

    def __init__(self, overrides: Sequence[str], spec_file: Path | None) -> None:
        self.overrides, self.spec_file = overrides, spec_file

    def decide(self, work: Uncovered) -> Decision:
        """Decide all samples by their stored scores and the criteria of the latest version with overrides on top."""
        latest = work.before.latest
        assert latest is not None, "versions are never deleted"
        spec = criteria_spec(latest, self.overrides, self.spec_file)
        criteria = Criteria.of(spec.quality)
        shards = {shard.entry.shard.id: shard for shard in with_standing(work, all_counted_shards(work))}
        samples = _all_samples(work, shards)
        facts = read_facts(work.ledger.storage, _tables(work, shards), criteria)
        decided = by_scores((sample for _, sample in samples), criteria.filters, facts)
        _refuse_lacking(work.ledger.storage, missing_scores(decided, criteria, facts))
        decided = _with_earlier(work.ledger.storage, criteria, decided)
        if work.is_partial and criteria.keep_best is not None:
            samples, decided = self._withhold(work, spec, shards, samples, decided)
        settled = settle(decided, criteria, facts, standing_among(decided, facts), spec.task)
        return Decision(self._changed(work, shards, samples, settled, facts), spec, criteria, is_refilter=True)

    def _withhold(
        self,
        work: Uncovered,
        spec: JobSpec,
        shards: dict[str, DecidedShard],
        samples: Sequence[tuple[Decided, Decided]],
        decided: Sequence[Decided],
    ) -> tuple[list[tuple[Decided, Decided]], list[Decided]]:
        """Return the samples and decisions that are left without those that wait for others of their rows."""
        undecided = {sample.key for sample in decided if not sample.since}
        waiting = withheld_keys(work, open_rows(spec, work), shards) & undecided
        for shard, count in Counter(shard for _, shard in waiting).items():
            if shard not in shards:
                shards |= _covered(work, [shard])
            shards[shard] = replace(shards[shard], withheld=count)
        left = [place for place, sample in enumerate(decided) if sample.key not in waiting]
        return [samples[place] for place in left], [decided[place] for place in left]

    def _changed(
        self,
        work: Uncovered,
        shards: dict[str, DecidedShard],
        samples: Sequence[tuple[Decided, Decided]],
        settled: Sequence[Decided],
        facts: Mapping[Key, Facts],
    ) -> Iterator[list[DecidedShard]]:
        """Yield the shards whose decisions differ from the latest version, and new ones."""
        assert work.before.latest is not None
        self.before, self.moved, self.came_back = work.before.latest, Counter(), {}
        by_shard: dict[str, dict[str, Decided]] = {shard: {} for shard in shards}
        changed = set(shards)
        for (before, _), after in zip(samples, settled, strict=True):
            by_shard.setdefault(after.shard, {})[after.id] = after
            if after.outcome == "kept" and after.made == "rejected":
                self.came_back[after.shard] = self.came_back.get(after.shard, 0) + 1
            if before.since and before.outcome != after.outcome:
                self.moved[f"{before.outcome} -> {after.outcome}"] += 1
            if (before.outcome, before.reasons) != (after.outcome, after.reasons) or work.before.is_old:
                changed.add(after.shard)
        shards |= _covered(work, sorted(changed - set(shards)))
        self.changed = [shard.entry.shard.id for shard in sorted(shards.values(), key=_place)]
        for start in range(0, len(self.changed), SHARDS_AT_ONCE):
            chosen = self.changed[start : start + SHARDS_AT_ONCE]
            yield [
                replace(shards[shard], decided=by_shard[shard], hashes=hashes_in(facts, shard, by_shard[shard]))
                for shard in chosen
            ]


def _place(shard: DecidedShard) -> tuple[int, int]:
    return shard.entry.plan, shard.entry.position


def _all_samples(work: Uncovered, shards: Mapping[str, DecidedShard]) -> list[tuple[Decided, Decided]]:
    """Return (decision that stands, the same without `since`) of all samples, in the order of the plan."""
    found: list[tuple[tuple[int, int], list[Decided]]] = []
    for shard in shards.values():
        found.append((_place(shard), list(shard.decided.values())))
    if not work.before.is_old:  # an old version has no segments, so all its shards are among `shards`
        for rows in work.before.all_shards():
            if rows.shard not in shards:
                found.append(((rows.plan, rows.place), decisions_in(rows)))
    found.sort(key=lambda each: each[0])
    return [(sample, replace(sample, since=0)) for _, part in found for sample in part]


def _tables(work: Uncovered, shards: Mapping[str, DecidedShard]) -> Iterator[tuple[str, str]]:
    """Yield (shard, path) of the tables that hold the scores of all samples."""
    yield from tables_of(list(shards.values()))
    if not work.before.is_old:
        for rows in work.before.all_shards():
            if rows.shard not in shards:
                yield from ((rows.shard, file.path) for file in rows.files if file.outcome != "quarantined")


def _covered(work: Uncovered, shards: Sequence[str]) -> dict[str, DecidedShard]:
    """Return covered shards, with the samples of their commits that the latest version has rows of."""
    old = work.before.shards(shards)
    commits = work.ledger.read_commits(shards)
    covered = {}
    for entry in entries_of(work.ledger, old):
        row_of = dict(
            zip(*(old[entry.shard.id].samples[name].to_pylist() for name in ("id", "row")), strict=True),
        )
        commit = commits[entry.shard.id]
        rows = [(sample, row_of[sample.id]) for sample in commit.samples if sample.id in row_of]
        covered[entry.shard.id] = DecidedShard(entry, commit, rows, {})
    return covered


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


def _refuse_lacking(storage: Storage, missing: Mapping[str, Sequence[str]]) -> None:
    for name, identifiers in missing.items():
        score = "perceptual hash" if name == "phash" else f"score {name}"
        count = f"{len(identifiers)} sample{'s lack' if len(identifiers) > 1 else ' lacks'}"
        raise PermanentError(
            f"{storage.uri}: {count} the {score}, such as {identifiers[0]}, because it was not computed when they were "
            "made: choose criteria without it, or make them in a new job that computes it."
        )


def _with_earlier(storage: Storage, criteria: Criteria, decided: list[Decided]) -> list[Decided]:
    """Let the decisions of the newest version that was decided wholly by these criteria stand.

    A version of a run may hold samples that were committed under other filters. Such a version does not qualify.
    """
    by_key = {sample.key: sample for sample in decided}
    for number in reversed(version_numbers(storage)):
        version = read_version(storage, number)
        if version.criteria == criteria.to_json():
            try:
                held = decisions_of(storage, version)
            except FileNotFoundError:
                continue  # pruned since the versions were listed
            if all(agree(by_key[key], found[1:]) for key, found in held.items() if key in by_key):
                return [
                    replace(sample, since=held[sample.key][0], outcome=held[sample.key][1], reasons=held[sample.key][2])
                    if sample.key in held
                    else sample
                    for sample in decided
                ]
    return decided
