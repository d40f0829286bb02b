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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jointdit.errors import PermanentError, SpecError
from pipelines.dataset import about
from pipelines.dataset.decisions import Criteria, Decided, agree, by_scores, missing_scores, read_facts, settle
from pipelines.dataset.publish import Decision, publish_decision
from pipelines.ledger.counting import CountedSample
from pipelines.ledger.entries import Commit
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.versions import (
    Key,
    Verdict,
    Version,
    read_version,
    require_latest,
    verdicts,
    version_numbers,
)
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
    work = _Refilter(storage, overrides, spec_file)
    version, is_new = publish_decision(storage, ledger, work.decide)
    about.refresh(storage, ledger)
    files_before = set(work.before.files)
    has_clouds = version.spec.output.points.as_files
    return Refiltered(
        output=storage.uri,
        before=work.before,
        version=version,
        moved=work.moved if is_new else {},
        rewritten=tuple(dict.fromkeys(file.shard for file in version.files if file not in files_before)),
        without_points=work.came_back - sum(len(file.clouds) for file in version.files) if has_clouds else 0,
    )


class _Refilter:
    """The decision of one refilter, repeated on top of whichever version is the latest, and its statistics."""

    before: Version
    moved: dict[str, int]
    came_back: int  # kept samples that were rejected when they were made

    def __init__(self, storage: Storage, overrides: Sequence[str], spec_file: Path | None) -> None:
        self.storage, self.overrides, self.spec_file = storage, overrides, spec_file

    def decide(
        self, latest: Version | None, counted: Sequence[CountedSample], commits: Mapping[str, Commit]
    ) -> Decision:
        """Decide all samples by their stored scores and the criteria of `latest` with the overrides on top."""
        storage = self.storage
        assert latest is not None, "versions are never deleted"
        spec = criteria_spec(latest, self.overrides, self.spec_file)
        criteria = Criteria.of(spec.quality)
        facts = read_facts(storage, commits, sorted({sample.entry.shard.id for sample in counted}), criteria)
        decided = by_scores(counted, criteria.filters, facts)
        _refuse_lacking(storage, missing_scores(decided, criteria, facts))
        earlier, held = _earlier(storage, criteria, decided)
        settled = settle(decided, criteria, facts, held, spec.task)
        self.before, self.moved = latest, _moved(verdicts(storage, latest), settled)
        self.came_back = sum(d.outcome == "kept" and d.counted.sample.outcome == "rejected" for d in settled)
        return Decision(settled, spec, criteria, None, earlier)


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


def _earlier(
    storage: Storage, criteria: Criteria, decided: Sequence[Decided]
) -> tuple[Version | None, dict[Key, Verdict]]:
    """Return the newest version that was decided wholly by these criteria, and its decisions, else (None, {}).

    A version of a run may hold samples that were committed under other filters. Such a version does not qualify.
    """
    for number in reversed(version_numbers(storage)):
        version = read_version(storage, number)
        if version.criteria == criteria.to_json():
            try:
                held = verdicts(storage, version)
            except FileNotFoundError:
                continue  # pruned since the versions were listed
            if all(agree(sample, held[sample.key]) for sample in decided if sample.key in held):
                return version, held
    return None, {}


def _moved(before: Mapping[Key, Verdict], after: Sequence[Decided]) -> dict[str, int]:
    moved = Counter[str]()
    for sample in after:
        if sample.key in before and before[sample.key][0] != sample.outcome:
            moved[f"{before[sample.key][0]} -> {sample.outcome}"] += 1
    return dict(sorted(moved.items()))
