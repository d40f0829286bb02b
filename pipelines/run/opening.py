"""Open a job: resolve and check output, weights and spec before anything is written."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from jointdit.errors import SpecError
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.publish import spec_in_force
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, read_latest
from pipelines.model.fingerprint import Fingerprint, code_version, fingerprint_of, recipe_of
from pipelines.model.identity import ModelIdentity, check_job_weights, check_scorers, identify_job, with_guidance
from pipelines.model.memory import check_memory
from pipelines.spec.changes import DESCRIPTIONS, changes
from pipelines.spec.job import JobSpec
from pipelines.stages.context import RunContext
from pipelines.store.storage import Storage


@dataclass(frozen=True)
class OpenedJob:
    """A job with everything that is known of it before its first shard."""

    spec: JobSpec  # with its guidance resolved, and the filters that `jointdit refilter` set, if it did
    ledger: Ledger
    model: ModelIdentity
    fingerprint: Fingerprint
    is_new: bool  # the output holds no job yet
    latest: Version | None
    notes: tuple[str, ...]  # sentences on settings that do not apply to what is published

    def check_model(self) -> None:
        """Check the weights of a new job, the models that its scores need, and their GPU memory if the spec names it.

        Raises:
            SpecError, ModelError: a checkpoint, scorer or GPU that no worker could run with.
        """
        if self.is_new:
            check_job_weights(self.spec, self.model.pins)
        scorer_bytes = check_scorers(self.spec)
        if self.spec.resources.gpu_memory_gb is not None:
            check_memory(self.spec, self.model, scorer_bytes)

    def begin(self, profile: bool = False) -> RunContext:
        """Write the job to its output and return the context of its tasks, as `context`."""
        self.ledger.storage.probe()
        self.ledger.open_job(self.spec, self.fingerprint, self.model.recorded())
        return self.context(profile)

    def context(self, profile: bool = False) -> RunContext:
        """Return the context of the job's tasks.

        profile: workers time the steps of their calls.
        """
        return RunContext(
            spec=self.spec,
            storage=self.ledger.storage,
            height=self.model.height,
            width=self.model.width,
            weights=self.model.weights,
            fingerprint=self.fingerprint,
            code=code_version(),
            profile=profile,
            pins=self.model.pins,
        )


def open_job(spec: JobSpec, storage: Storage) -> OpenedJob:
    """Identify the weights of a job and compare it with the job that its output holds. Writes nothing.

    Raises:
        SpecError: the output holds another job. ModelError: weights that do not exist. StoreError: the store refuses.
    """
    ledger = Ledger(storage)
    model = identify_job(spec, ledger.recorded_sources())
    spec = with_guidance(spec, model)
    fingerprint = fingerprint_of(spec, model, recipe_of(ledger.recorded_fingerprint(), storage.uri))
    is_new = not ledger.check_job(spec, fingerprint)
    latest = None if is_new else read_latest(storage)
    notes = notes_on_changes(spec, latest, storage.uri) if latest is not None else ()
    return OpenedJob(spec_in_force(spec, latest), ledger, model, fingerprint, is_new, latest, notes)


def notes_on_changes(spec: JobSpec, latest: Version, output: str) -> tuple[str, ...]:
    """Say which settings of a spec differ from those of the latest version, and what they apply to."""
    notes = []
    if latest.refilter:
        if Criteria.of(spec.quality) != Criteria.of(spec_in_force(spec, latest).quality):
            notes.append(
                f"quality.filters and keep_best are those of version {latest.refilter}, which `jointdit refilter` set "
                f"for the whole dataset. To use the spec's: jointdit refilter {output} --spec <the spec>."
            )
    elif latest.criteria and latest.criteria != Criteria.of(spec.quality).to_json():
        notes.append(
            f"quality.filters and keep_best differ from those of version {latest.number} and apply to new samples "
            f"alone. To use them for the whole dataset: jointdit refilter {output} --spec <the spec>."
        )
    with contextlib.suppress(SpecError):  # the recorded spec, where the rules have become stricter since
        resolved = latest.spec.model_dump(mode="json")
        notes += [
            f"{key} {asked} applies from the next version on; version {latest.number} has {recorded}."
            for key, recorded, asked in changes(DESCRIPTIONS, latest.recorded_spec, resolved, spec)
        ]
    return tuple(notes)
