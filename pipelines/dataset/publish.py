"""Commits -> a published version: which samples count, where they end, and exactly which files hold them.

    _versions/000001/version.json              counts, the files of the version, what it was made from; create-only
    _versions/000001/outcomes-<token>.parquet  one row a sample: id, where it came from, where it ended
    README.md  stats.json  gallery/            about the latest version; rewritten with each

Which samples count is decided by the plan (counting.py), where they end by decisions.py, and version_files.py writes
the tables that are not there yet. A run that finds nothing new publishes nothing.

Creating `version.json` is the only step that publishes. A publisher reads the highest version there is, N - 1, then the
plan; it writes outcomes and tables under names of its own, and creates `version.json` of N. If the create succeeds,
N - 1 was the latest version until then: no decision of a version in between was missed, and garbage collection kept
every object that N - 1 names. If it fails, the publisher drops what it wrote and decides again from the new latest
version. A version therefore borrows objects only from the version before it and from commits; what only older versions
have is copied. `jointdit gc` deletes what publishers wrote that lost or were killed, once their number is taken.

The criteria of a version are the spec's of the run that published it, until `jointdit refilter` (refilter.py) sets them
for the whole dataset: from then on they hold for what is made later too, and specs that say otherwise are not asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from jointdit.errors import PermanentError, StoreError
from pipelines.dataset.decisions import Criteria, Decided, agree, by_commits, by_scores, read_facts, settle
from pipelines.dataset.tables import Attempt, Before, ends_of, write_tables
from pipelines.ledger.counting import CountedSample, Counting
from pipelines.ledger.entries import OUTCOMES, Commit, Outcome, new_token, now, sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import (
    OUTCOMES_SCHEMA,
    VERSION_FORMATS,
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
from pipelines.spec.job import JobSpec, QualitySpec, load_spec
from pipelines.store.parquet import parquet_bytes
from pipelines.store.storage import AlreadyExists, Storage

PUBLISH_ATTEMPTS = 100


@dataclass(frozen=True)
class Decision:
    """What a version is to say."""

    samples: Sequence[Decided]
    spec: Mapping[str, Any]
    criteria: Criteria
    refilter: int | None  # None: this version sets the criteria
    held: Version | None = None  # whose decisions stand

    def is_told_by(self, version: Version, table: pa.Table) -> bool:
        """Whether a version, with its outcomes, says the same already."""
        if self.refilter is None and version.criteria != self.criteria.to_json():
            return False
        wanted = [(*each.key, each.outcome) for each in self.samples]
        columns = (table[name].to_pylist() for name in ("id", "shard", "outcome"))
        return wanted == list(zip(*columns, strict=True))


def publish(storage: Storage, ledger: Ledger, spec: Mapping[str, Any]) -> tuple[Version, bool]:
    """The version that covers all planned shards, and whether it is new.

    Raises:
        Unfinished: a shard that counts has no commit.
    """
    return publish_decision(storage, ledger, lambda *found: decide_run(storage, spec, *found))


def decide_run(
    storage: Storage,
    spec: Mapping[str, Any],
    latest: Version | None,
    counted: Sequence[CountedSample],
    commits: Mapping[str, Commit],
) -> Decision:
    """What a run's version says: the decisions of the latest one stand, what it does not have is decided now."""
    job = spec_in_force(load_spec(dict(spec)), latest)
    refilter = latest.refilter if latest else 0
    criteria = Criteria.from_json(latest.criteria) if latest and refilter else Criteria.of(job.quality)
    held = verdicts(storage, latest) if latest else {}
    decided = decide_all(storage, counted, commits, criteria, refilter > 0, held, job.task)
    return Decision(decided, job.as_given(), criteria, refilter, latest)


def decide_all(
    storage: Storage,
    counted: Sequence[CountedSample],
    commits: Mapping[str, Commit],
    criteria: Criteria,
    is_refiltered: bool,
    held: Mapping[Key, Verdict],
    task: str,
) -> list[Decided]:
    """Where samples end under these criteria; `held` decisions stand. Reads scores only where a decision needs them."""
    decided = by_commits(counted)
    new = {each.key[1] for each in decided if each.key not in held}
    if new and (is_refiltered or criteria.needs_all):
        shards = {each.key[1] for each in decided} if criteria.max_distance is not None else new
        facts = read_facts(storage, commits, sorted(shards), criteria)
        if is_refiltered:
            open_ = iter(by_scores((d.counted for d in decided if d.key not in held), criteria.filters, facts))
            decided = [each if each.key in held else next(open_) for each in decided]
        return settle(decided, criteria, facts, held, task)
    return settle(decided, Criteria(), {}, held, task)


def decide_again(
    storage: Storage, version: Version, counted: Sequence[CountedSample], commits: Mapping[str, Commit]
) -> list[Decided]:
    """Where the samples of a version must end, by its criteria and the version whose decisions stand in it.

    A decision that stands is believed only where the sample's commit, or its scores, allow it.
    """
    criteria = Criteria.from_json(version.criteria)
    decided, facts = by_commits(counted), {}
    if version.refilter or criteria.needs_all:
        facts = read_facts(storage, commits, sorted({each.key[1] for each in decided}), criteria)
    if version.refilter:
        decided = by_scores(counted, criteria.filters, facts)
    stand = verdicts_at(storage, version.held_outcomes) if version.held_outcomes else {}
    held = {each.key: stand[each.key] for each in decided if each.key in stand and agree(each, stand[each.key])}
    return settle(decided, criteria, facts, held, str(version.spec["task"]))


def spec_in_force(spec: JobSpec, latest: Version | None) -> JobSpec:
    """A run's spec with the criteria that hold for its output: those that `jointdit refilter` set, if it did."""
    if latest is None or not latest.refilter:
        return spec
    quality = {**spec.quality.model_dump(exclude_unset=True, exclude={"calibrated"}), **latest.criteria}
    return spec.model_copy(update={"quality": QualitySpec.model_validate(quality)})


def publish_decision(
    storage: Storage,
    ledger: Ledger,
    decide: Callable[[Version | None, Sequence[CountedSample], Mapping[str, Commit]], Decision],
) -> tuple[Version, bool]:
    """The version that says what `decide` makes of (latest version, samples that count, commits); whether it is new.

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
            continue  # `latest` was superseded and pruned meanwhile
        if not is_new:
            return version, False
        try:
            data = json.dumps({**asdict(version), "token": new_token(), "format": VERSION_FORMATS[-1]}) + "\n"
            storage.create_bytes(f"_versions/{version.number:06d}/version.json", data.encode())
        except AlreadyExists:
            continue  # another publisher was first: what this one decided may not hold any more
        return version, True
    raise PermanentError(f"other drivers keep publishing {storage.uri}: run again when they are done.")


def _next_version(
    storage: Storage,
    ledger: Ledger,
    latest: Version | None,
    decide: Callable[[Version | None, Sequence[CountedSample], Mapping[str, Commit]], Decision],
) -> tuple[Version, bool]:
    """(the version to publish on top of `latest`, True), its objects written; (latest, False) if it says the same."""
    planned = ledger.planned()
    if not planned:
        raise PermanentError(f"{storage.uri} has no plan: there is nothing to publish.")
    commits = ledger.read_commits({entry.shard.id for entry in planned})
    counted = list(Counting(planned).counted(commits))
    decision = decide(latest, counted, commits)
    table = read_outcomes(storage, latest) if latest else OUTCOMES_SCHEMA.empty_table()
    if latest is not None and decision.is_told_by(latest, table):
        return latest, False
    attempt = Attempt(latest.number + 1 if latest else 1, new_token())
    points = load_spec(dict(decision.spec)).output.points
    files = write_tables(storage, attempt, decision.samples, commits, _before(latest, table), points)
    outcomes = parquet_bytes(_outcomes_table(decision.samples, files))
    storage.write_bytes(attempt.path("outcomes"), outcomes)
    version = Version(
        number=attempt.number,
        counts={outcome: sum(each.outcome == outcome for each in decision.samples) for outcome in OUTCOMES},
        files=tuple(files),
        superseded=sum(len(commit.samples) for commit in commits.values()) - len(counted),
        reasons=dict(Counter(reason.split(":")[0] for each in decision.samples for reason in each.reasons)),
        plans=tuple(sorted({entry.plan for entry in planned})),
        outcomes_sha256=sha256(outcomes),
        created=now(),
        code=code_version(),
        spec=dict(decision.spec),
        criteria=decision.criteria.to_json(),
        refilter=attempt.number if decision.refilter is None else decision.refilter,
        held=decision.held.number if decision.held else 0,
        outcomes=attempt.path("outcomes"),
        held_outcomes=_held_outcomes(storage, attempt, latest, decision.held),
    )
    return version, True


def _held_outcomes(storage: Storage, attempt: Attempt, latest: Version | None, held: Version | None) -> str:
    """The path of the decisions that stand. Those of an older version are copied, because it may be pruned."""
    if held is None:
        return ""
    if latest is not None and held.number == latest.number:
        return held.outcomes
    storage.write_bytes(attempt.path("held"), storage.read_bytes(held.outcomes))
    return attempt.path("held")


def _before(latest: Version | None, table: pa.Table) -> Before:
    """What the latest version has, whose outcomes are `table`."""
    if latest is None:
        return Before({}, (), {})
    shards: dict[str, list[tuple[Outcome, str]]] = {}
    for row in table.select(["shard", "outcome", "id"]).to_pylist():
        shards.setdefault(row["shard"], []).append((row["outcome"], row["id"]))
    known = {(file.shard, file.sha256): file.path for file in latest.files}
    known |= {(file.shard, cloud.sha256): cloud.path for file in latest.files for cloud in file.clouds}
    return Before({shard: ends_of(samples) for shard, samples in shards.items()}, latest.files, known)


def _outcomes_table(samples: Sequence[Decided], files: Sequence[VersionFile]) -> pa.Table:
    file_of = {(file.shard, file.outcome): file.path for file in files}
    records = []
    for each in samples:
        counted = each.counted
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
                "outcome": each.outcome,
                "reasons": list(each.reasons),
                "file": file_of[shard.id, each.outcome],
            }
        )
    return pa.Table.from_pylist(records, schema=OUTCOMES_SCHEMA)
