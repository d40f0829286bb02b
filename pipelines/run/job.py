"""The spine of a run: plan -> pending -> dispatch -> commit -> publish. Start here.

`run_job` is all that `jointdit run` does. It can be killed at any moment and started again, here or elsewhere, also
while another run is active: its only state is what is planned and committed in the output. Its lease (ledger/lease.py)
only tells others that it is active. Requests before the lease are made once, so that a wrong address fails at once;
all later ones are idempotent, and are retried while the store is busy (store/retries.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from rich.console import Console

from jointdit.errors import InputError
from pipelines.dataset import about
from pipelines.dataset.garbage import prune_versions
from pipelines.dataset.publish import PUBLISH_ATTEMPTS, publish
from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.engine.usage import Usage, profile_of
from pipelines.ledger.entries import Unfinished
from pipelines.ledger.lease import Heartbeat
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.resume import Remaining, drop_roll_up, read_remaining
from pipelines.ledger.versions import Version
from pipelines.plan.propose import Proposal, extend_plan, propose
from pipelines.run.notify import message_of, notify, webhook_of
from pipelines.run.opening import OpenedJob, open_job
from pipelines.run.periodic import PeriodicPublisher
from pipelines.run.report import keep_report, report_of
from pipelines.run.rounds import Stopped, count_left, generate_all
from pipelines.spec.job import JobSpec
from pipelines.stages.context import RunContext
from pipelines.store.retries import patiently

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """The result of a run."""

    output: str
    version: Version | None  # None if a limit stopped the run: what a run ends with holds everything that is planned
    is_new: bool  # False if there was nothing new to publish
    committed_before: int  # shards
    committed_now: int
    samples_now: int
    seconds: float
    counts_now: dict[str, int]  # samples by outcome
    removed: tuple[str, ...]  # planned inputs that input.uri no longer lists; their samples stay
    usage: Usage
    stopped: Stopped | None
    report: str  # address of the stored report; empty if no worker was needed
    profile: dict[str, float] | None = None  # seconds by step, if the run was profiled (engine/usage.py)


def run_job(
    spec: JobSpec,
    *,
    single_writer: bool = False,
    until: datetime | None = None,
    worker_class: type | None = None,
    console: Console | None = None,
    profile: bool = False,
) -> RunSummary:
    """Bring a job to its next published version, or as far as its budget and `until` allow.

    worker_class: replaces GenerationWorker (pipelines/stages/generate.py), for another model behind the same methods.
    profile: workers time the steps of their calls, and the summary and the report show the times.

    Raises:
        PermanentError and its subclasses: one sentence. Commits stay, and the next run continues from them.
    """
    job = open_job(spec, open_output(spec.output.uri, single_writer))
    sampled = job.context() if job.is_new else None
    proposed = propose(job.spec, job.fingerprint, job.ledger, sampled)  # finds bad input before anything is written
    job.check_model()
    context = job.begin(profile)
    storage, ledger, patience = context.storage, job.ledger, spec.retries.infrastructure
    progress, limits = Progress(console), Limits(spec.budget, spec.price, until)
    with Heartbeat(storage, note=progress.note):
        proposal = patiently(lambda: extend_plan(job.spec, job.fingerprint, ledger, proposed), patience)
        remaining = patiently(lambda: read_remaining(ledger), patience)
        with progress:
            for note in job.notes:
                progress.note(note)
            note_input_changes(progress, proposal)
            try:
                version, is_new = generate_and_publish(
                    context, ledger, progress, limits, worker_class, remaining, lambda: plan_again(job, progress)
                )
            except BaseException as error:
                keep_report(storage, report_of(job.spec, progress, None, f"{type(error).__name__}: {error}", profile))
                raise
        number = version.number if version is not None else None
        report = keep_report(storage, report_of(job.spec, progress, number, limits.stopped, profile))
        patiently(lambda: about.refresh(storage, ledger), patience)
        retain = spec.output.retain_versions
        if version is not None and retain is not None:
            patiently(lambda: prune_versions(storage, retain), patience)
        stopped = patiently(lambda: count_left(ledger, limits.stopped), patience) if version is None else None
    if version is not None and is_new and (webhook := webhook_of(spec.notify)):
        notify(webhook, message_of(spec.name, storage.uri, version))
    return RunSummary(
        output=storage.uri,
        version=version,
        is_new=is_new,
        committed_before=remaining.committed,
        committed_now=progress.shards,
        samples_now=progress.counts.total(),
        seconds=progress.seconds,
        counts_now=dict(progress.counts),
        removed=proposal.removed,
        usage=progress.usage,
        stopped=stopped,
        report=report,
        profile=profile_of(progress.seconds_of, progress.usage) if profile and progress.usage.held_seconds else None,
    )


def note_input_changes(progress: Progress, proposal: Proposal) -> None:
    """Say how many rows of changed files are made, and name planned files that are gone, moved or back."""
    if proposal.changes:
        progress.note(f"the input has {proposal.rows}.")
    for change in proposal.changes:
        if change.made_again:
            progress.note(
                f"{change.uri} has changed: all its {change.rows:,} rows are made again, {change.made_again}."
            )
    for uri in proposal.removed:
        progress.note(f"{uri} is no longer in the input; its samples stay in the dataset.")
    for uri, to in proposal.moved:
        progress.note(f"{uri} was moved to {to}; its rows count under the new name.")
    for uri in proposal.restored:
        progress.note(f"{uri} is back in place of a later file with the same row ids; its rows count again.")


def plan_again(job: OpenedJob, progress: Progress) -> None:
    """List the input again and extend the plan. What is wrong with it by now is said, and does not undo the run."""

    def extend() -> Proposal:
        return extend_plan(job.spec, job.fingerprint, job.ledger, propose(job.spec, job.fingerprint, job.ledger))

    try:
        proposal = patiently(extend, job.spec.retries.infrastructure)
        note_input_changes(progress, replace(proposal, removed=()))  # removed files are not part of this
    except InputError as error:
        progress.note(f"a planned file is gone, and the input cannot be planned again: {error}")


def generate_and_publish(
    context: RunContext,
    ledger: Ledger,
    progress: Progress,
    limits: Limits | None = None,
    worker_class: type | None = None,
    remaining: Remaining | None = None,
    plan_again: Callable[[], None] | None = None,
) -> tuple[Version | None, bool]:
    """Generate every planned shard and return (the version that holds them, whether it is new).

    Shards that another driver plans meanwhile are generated too. The version is None if a limit stopped the run.
    remaining: what the ledger has left to make, if it was just read.
    plan_again: called before a version is published if a planned file was gone when it was read: it may have moved, and
    then its rows count under its new name alone.
    """
    spec, limits = context.spec, limits or Limits()
    for _ in range(PUBLISH_ATTEMPTS):
        with PeriodicPublisher(context.storage, spec, progress):
            left = generate_all(context, ledger, progress, limits, worker_class, remaining)
        if left:
            return None, False
        remaining = None
        if progress.has_vanished and plan_again is not None:
            progress.has_vanished = False
            plan_again()
            continue
        with contextlib.suppress(Unfinished):
            return patiently(lambda: publish(context.storage, ledger, spec), spec.retries.infrastructure)
        logger.info("the plan has grown since the last of its shards was committed")
        patiently(lambda: drop_roll_up(ledger), spec.retries.infrastructure)
    raise Unfinished(f"other drivers keep extending the plan of {context.storage.uri}: run again when they are done.")
