"""Decide a whole dataset anew from its stored scores: a version with other filters, without a GPU and without Ray.

The criteria that it sets hold from then on: what later runs make is decided by them too, whatever their specs say
(`publish.spec_in_force`), until the next refilter. Commits stay what they are, so going back to earlier criteria gives
the earlier decisions and the earlier files; and nothing is planned: a sample that is rejected now gets no new seed, and
one that was rejected when it was made has had its own. It had no point cloud, so where it is kept now and clouds are
files, one is made from its stored depth.

Where a version of these criteria is there already, its decisions stand. Else all samples are decided in the order of
the plan, without regard to who won before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jointdit.errors import PermanentError, SpecError
from pipelines.dataset import about
from pipelines.dataset.decisions import Criteria, Decided, agree, by_scores, lacking, read_facts, settle
from pipelines.dataset.publish import Decision, publish_decision
from pipelines.ledger.counting import CountedSample
from pipelines.ledger.entries import Commit
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.versions import Key, Verdict, Version, read_latest, read_version, verdicts, version_numbers
from pipelines.spec.file import apply_overrides
from pipelines.spec.job import JobSpec, load_spec
from pipelines.store.storage import Storage

SETTABLE = ("quality.filters", "quality.keep_best", "quality.calibration")
TAKEN = ("filters", "keep_best", "calibration", "calibrated")  # of another spec's quality


@dataclass(frozen=True)
class Refiltered:
    """What `jointdit refilter` did."""

    output: str
    before: Version
    version: Version  # the same one where nothing changed
    moved: dict[str, int]  # "kept -> rejected" -> samples
    rewritten: tuple[str, ...]  # shards of which the version has tables that the one before had not
    without_points: int  # samples that are kept now, were rejected when made, and have no image to make a cloud from

    @property
    def is_new(self) -> bool:
        """Whether a version was published."""
        return self.version.number != self.before.number


def refilter(uri: str, overrides: Sequence[str] = (), spec_file: Path | None = None) -> Refiltered:
    """Publish the version of other criteria: those of the latest version, or of a spec, with overrides on top.

    Raises:
        SpecError: an override of something else, or of something that is no filter.
        PermanentError: the job is not finished, or samples lack a score that the criteria need.
    """
    storage = open_output(uri)
    ledger = Ledger(storage)
    ledger.read_job()
    if read_latest(storage) is None:
        raise PermanentError(f"{storage.uri} has no version yet: run the job to its end first.")
    work = _Refilter(storage, overrides, spec_file)
    version, is_new = publish_decision(storage, ledger, work.decide)
    about.refresh(storage, ledger)
    had = set(work.before.files)
    has_clouds = load_spec(dict(version.spec)).output.points.as_files
    return Refiltered(
        output=storage.uri,
        before=work.before,
        version=version,
        moved=work.moved if is_new else {},
        rewritten=tuple(dict.fromkeys(file.shard for file in version.files if file not in had)),
        without_points=work.came_back - sum(len(file.clouds) for file in version.files) if has_clouds else 0,
    )


class _Refilter:
    """The decision of one refilter, made again on top of whichever version is the latest; with what it found."""

    before: Version
    moved: dict[str, int]
    came_back: int  # samples that are kept now and were rejected when they were made

    def __init__(self, storage: Storage, overrides: Sequence[str], spec_file: Path | None) -> None:
        self.storage, self.overrides, self.spec_file = storage, overrides, spec_file

    def decide(
        self, latest: Version | None, counted: Sequence[CountedSample], commits: Mapping[str, Commit]
    ) -> Decision:
        """Decide all samples by their stored scores and the criteria of `latest`, with the overrides on top."""
        storage = self.storage
        assert latest is not None, "versions are never deleted"
        spec = criteria_spec(latest, self.overrides, self.spec_file)
        criteria = Criteria.of(spec.quality)
        facts = read_facts(storage, commits, sorted({each.entry.shard.id for each in counted}), criteria)
        decided = by_scores(counted, criteria.filters, facts)
        _refuse_lacking(storage, lacking(decided, criteria, facts))
        earlier, held = _earlier(storage, criteria, decided)
        settled = settle(decided, criteria, facts, held, spec.task)
        self.before, self.moved = latest, _moved(verdicts(storage, latest), settled)
        self.came_back = sum(d.outcome == "kept" and d.counted.sample.outcome == "rejected" for d in settled)
        return Decision(settled, spec.as_given(), criteria, None, earlier)


def criteria_spec(version: Version, overrides: Sequence[str], spec_file: Path | None) -> JobSpec:
    """The spec of a version with other criteria. Raises SpecError for an override of anything else."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not any(key == name or key.startswith(f"{name}.") for name in SETTABLE):
            raise SpecError(f"--set {key} is nothing that refilter can change: set {' or '.join(SETTABLE[:2])}.")
    quality = dict(version.spec.get("quality", {}))
    if spec_file is not None:
        given = load_spec(spec_file).as_given().get("quality", {})
        for name in TAKEN:
            quality.pop(name, None)
            if name in given:
                quality[name] = given[name]
    return load_spec(apply_overrides({**version.spec, "quality": quality}, overrides))


def _refuse_lacking(storage: Storage, missing: Mapping[str, Sequence[str]]) -> None:
    for name, identifiers in missing.items():
        what = "perceptual hash" if name == "phash" else f"score {name}"
        count = f"{len(identifiers)} sample{'s lack' if len(identifiers) > 1 else ' lacks'}"
        raise PermanentError(
            f"{storage.uri}: {count} the {what}, such as {identifiers[0]}, which was not computed when they were made: "
            "choose criteria without it, or make them in a new job that computes it."
        )


def _earlier(
    storage: Storage, criteria: Criteria, decided: Sequence[Decided]
) -> tuple[Version | None, dict[Key, Verdict]]:
    """The newest version with these criteria, all of whose samples are decided by them, and its decisions, if any.

    A run's version may hold samples that were committed under other filters: such a one is not it.
    """
    for number in reversed(version_numbers(storage)):
        version = read_version(storage, number)
        if version.criteria == criteria.to_json():
            try:
                held = verdicts(storage, version)
            except FileNotFoundError:
                continue  # pruned since the versions were listed
            if all(agree(each, held[each.key]) for each in decided if each.key in held):
                return version, held
    return None, {}


def _moved(before: Mapping[Key, Verdict], after: Sequence[Decided]) -> dict[str, int]:
    moved = Counter[str]()
    for each in after:
        if each.key in before and before[each.key][0] != each.outcome:
            moved[f"{before[each.key][0]} -> {each.outcome}"] += 1
    return dict(sorted(moved.items()))
