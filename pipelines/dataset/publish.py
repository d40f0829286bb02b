"""Make a published version from commits.

    _versions/000001/version.json              counts, the files of the version, what it was made from; create-only
    _versions/000001/outcomes-<token>.parquet  one row per sample: id, origin, outcome
    README.md  stats.json  gallery/            describe the latest version; rewritten with each one

The plan decides which samples count (ledger/counting.py), decisions.py decides where they end, and tables.py writes the
tables that do not exist yet. A run that finds nothing new publishes nothing.

Creating `version.json` is the only step that publishes. A publisher reads the highest version, N - 1, and then the
plan. It writes outcomes and tables under names of its own and creates `version.json` of N. If the create succeeds, N -
1 was the latest version until then, so no decision was missed and garbage collection kept every object that N - 1
names. If the create fails, the publisher drops what it wrote and decides again from the new latest version. A version
therefore borrows objects only from the version before it and from commits; what only older versions have is copied.
Once a number is taken, `jointdit gc` deletes what other publishers wrote for it.

The criteria of a version come from the spec of the run that published it, until `jointdit refilter` (refilter.py) sets
them for the whole dataset. From then on they hold for later samples too, and the criteria in specs are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from jointdit.errors import PermanentError, StoreError
from pipelines.dataset.decisions import Criteria, Decided, agree, by_commits, by_scores, read_facts, settle
from pipelines.dataset.tables import Before, PublishAttempt, ids_by_outcome, write_tables
from pipelines.ledger.counting import CountedSample, Counting
from pipelines.ledger.entries import OUTCOMES, Commit, Outcome, new_token, now, sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import version_object
from pipelines.ledger.versions import (
    OUTCOMES_SCHEMA,
    Key,
    Verdict,
    Version,
    VersionFile,
    read_latest,
    read_outcomes,
    verdicts,
    verdicts_at,
)
from pipelines.model.fingerprint import code_version
from pipelines.spec.job import JobSpec, QualitySpec
from pipelines.store.parquet import parquet_bytes
from pipelines.store.storage import AlreadyExists, Storage

PUBLISH_ATTEMPTS = 100


@dataclass(frozen=True)
class Decision:
    """The content of a version before its number is known."""

    samples: Sequence[Decided]
    spec: JobSpec
    criteria: Criteria
    refilter: int | None  # None: this version sets the criteria
    held: Version | None = None  # the version whose decisions stand

    def matches(self, version: Version, outcomes: pa.Table) -> bool:
        """Return whether a published version, with its outcomes table, already has this content."""
        if self.refilter is None and version.criteria != self.criteria.to_json():
            return False
        rows = [(*sample.key, sample.outcome) for sample in self.samples]
        columns = (outcomes[name].to_pylist() for name in ("id", "shard", "outcome"))
        return rows == list(zip(*columns, strict=True))


Decide = Callable[[Version | None, Sequence[CountedSample], Mapping[str, Commit]], Decision]
"""Decides from (latest version, samples that count, commits)."""


def publish(storage: Storage, ledger: Ledger, spec: JobSpec) -> tuple[Version, bool]:
    """Return the version that covers all planned shards, and whether it is new.

    Raises:
        Unfinished: a shard that counts has no commit.
    """
    return publish_decision(storage, ledger, partial(decide_run, storage, spec))


def decide_run(
    storage: Storage,
    spec: JobSpec,
    latest: Version | None,
    counted: Sequence[CountedSample],
    commits: Mapping[str, Commit],
) -> Decision:
    """Decide the version of a run: decisions of the latest version stand, samples that it lacks are decided now."""
    spec = spec_in_force(spec, latest)
    refilter = latest.refilter if latest else 0
    criteria = Criteria.from_json(latest.criteria) if latest and refilter else Criteria.of(spec.quality)
    held = verdicts(storage, latest) if latest else {}
    decided = decide_all(storage, counted, commits, criteria, refilter > 0, held, spec.task)
    return Decision(decided, spec, criteria, refilter, latest)


def decide_all(
    storage: Storage,
    counted: Sequence[CountedSample],
    commits: Mapping[str, Commit],
    criteria: Criteria,
    is_refiltered: bool,
    held: Mapping[Key, Verdict],
    task: str,
) -> list[Decided]:
    """Decide where samples end under these criteria, except where a decision is `held`. Reads scores only if needed."""
    decided = by_commits(counted)
    new = {sample.shard for sample in decided if sample.key not in held}
    if not new or not (is_refiltered or criteria.needs_all):
        return settle(decided, Criteria(), {}, held, task)
    shards = {sample.shard for sample in decided} if criteria.max_distance is not None else new
    facts = read_facts(storage, commits, sorted(shards), criteria)
    if is_refiltered:
        undecided = [sample.counted for sample in decided if sample.key not in held]
        by_key = {sample.key: sample for sample in by_scores(undecided, criteria.filters, facts)}
        decided = [by_key.get(sample.key, sample) for sample in decided]
    return settle(decided, criteria, facts, held, task)


def decide_again(
    storage: Storage, version: Version, counted: Sequence[CountedSample], commits: Mapping[str, Commit]
) -> list[Decided]:
    """Decide the samples of a published version again, by its criteria and the decisions that stand in it.

    A decision that stands is accepted only where the sample's commit, or its scores, allow it.
    """
    criteria = Criteria.from_json(version.criteria)
    decided, facts = by_commits(counted), {}
    if version.refilter or criteria.needs_all:
        facts = read_facts(storage, commits, sorted({sample.shard for sample in decided}), criteria)
    if version.refilter:
        decided = by_scores(counted, criteria.filters, facts)
    stand = verdicts_at(storage, version.held_outcomes) if version.held_outcomes else {}
    held = {s.key: stand[s.key] for s in decided if s.key in stand and agree(s, stand[s.key])}
    return settle(decided, criteria, facts, held, version.spec.task)


def spec_in_force(spec: JobSpec, latest: Version | None) -> JobSpec:
    """Return a run's spec with the criteria that `jointdit refilter` set for its output, if it did."""
    if latest is None or not latest.refilter:
        return spec
    quality = {**spec.quality.model_dump(exclude_unset=True, exclude={"calibrated"}), **latest.criteria}
    return spec.model_copy(update={"quality": QualitySpec.model_validate(quality)})


def publish_decision(storage: Storage, ledger: Ledger, decide: Decide) -> tuple[Version, bool]:
    """Publish what `decide` returns. Returns the version, and whether it is new.

    Raises:
        PermanentError: there is no plan, or other drivers published each time before this one could.
        StoreError: an object that the latest version names is missing.
    """
    for _ in range(PUBLISH_ATTEMPTS):
        latest = read_latest(storage)
        try:
            version, is_new = _next_version(storage, ledger, latest, decide)
        except FileNotFoundError as error:
            newest = read_latest(storage)
            if newest is None or (latest is not None and newest.number == latest.number):
                raise StoreError(
                    f"{error} is missing and the next version needs it: restore it from a backup."
                ) from error
            continue  # `latest` was superseded and pruned in the meantime
        if not is_new:
            return version, False
        try:
            storage.create_bytes(version_object(version.number, "version.json"), version.to_bytes())
        except AlreadyExists:
            continue  # another publisher was first, so this decision may not hold any more
        return version, True
    raise PermanentError(f"other drivers keep publishing {storage.uri}: run again when they are done.")


def _next_version(storage: Storage, ledger: Ledger, latest: Version | None, decide: Decide) -> tuple[Version, bool]:
    """Write the objects of the next version. Returns (next version, True), or (latest, False) if nothing changed."""
    planned = ledger.planned()
    if not planned:
        raise PermanentError(f"{storage.uri} has no plan: there is nothing to publish.")
    commits = ledger.read_commits({entry.shard.id for entry in planned})
    counted = list(Counting(planned).counted(commits))
    decision = decide(latest, counted, commits)
    outcomes = read_outcomes(storage, latest) if latest else OUTCOMES_SCHEMA.empty_table()
    if latest is not None and decision.matches(latest, outcomes):
        return latest, False
    attempt = PublishAttempt(latest.number + 1 if latest else 1, new_token())
    points = decision.spec.output.points
    files = write_tables(storage, attempt, decision.samples, commits, _before(latest, outcomes), points)
    data = parquet_bytes(_outcomes_table(decision.samples, files))
    storage.write_bytes(attempt.path("outcomes"), data)
    version = Version(
        number=attempt.number,
        counts={outcome: sum(sample.outcome == outcome for sample in decision.samples) for outcome in OUTCOMES},
        files=tuple(files),
        superseded=sum(len(commit.samples) for commit in commits.values()) - len(counted),
        reasons=dict(Counter(reason.split(":")[0] for sample in decision.samples for reason in sample.reasons)),
        plans=tuple(sorted({entry.plan for entry in planned})),
        outcomes_sha256=sha256(data),
        created=now(),
        code=code_version(),
        recorded_spec=decision.spec.as_given(),
        criteria=decision.criteria.to_json(),
        refilter=attempt.number if decision.refilter is None else decision.refilter,
        held=decision.held.number if decision.held else 0,
        outcomes=attempt.path("outcomes"),
        held_outcomes=_held_outcomes(storage, attempt, latest, decision.held),
    )
    return version, True


def _held_outcomes(storage: Storage, attempt: PublishAttempt, latest: Version | None, held: Version | None) -> str:
    """Return the path of the decisions that stand. Those of an older version are copied, because it may be pruned."""
    if held is None:
        return ""
    if latest is not None and held.number == latest.number:
        return held.outcomes
    storage.write_bytes(attempt.path("held"), storage.read_bytes(held.outcomes))
    return attempt.path("held")


def _before(latest: Version | None, outcomes: pa.Table) -> Before:
    """Return what the latest version has. `outcomes` is its outcomes table."""
    if latest is None:
        return Before({}, (), {})
    shards: dict[str, list[tuple[Outcome, str]]] = {}
    for row in outcomes.select(["shard", "outcome", "id"]).to_pylist():
        shards.setdefault(row["shard"], []).append((row["outcome"], row["id"]))
    known = {(file.shard, file.sha256): file.path for file in latest.files}
    known |= {(file.shard, cloud.sha256): cloud.path for file in latest.files for cloud in file.clouds}
    return Before({shard: ids_by_outcome(samples) for shard, samples in shards.items()}, latest.files, known)


def _outcomes_table(samples: Sequence[Decided], files: Sequence[VersionFile]) -> pa.Table:
    file_of = {(file.shard, file.outcome): file.path for file in files}
    records = []
    for decided in samples:
        counted = decided.counted
        span, sample, shard = counted.span, counted.sample, counted.entry.shard
        records.append(
            {
                "id": sample.id,
                "source": counted.source,
                "uri": span.uri,
                "etag": span.etag,
                "position": sample.position,
                "index": sample.index,
                "round": shard.round,
                "shard": shard.id,
                "outcome": decided.outcome,
                "reasons": list(decided.reasons),
                "file": file_of[shard.id, decided.outcome],
            }
        )
    return pa.Table.from_pylist(records, schema=OUTCOMES_SCHEMA)
