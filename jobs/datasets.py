"""The commands of datasets: run, plan, status, publish, validate, retry, refilter, gc, versions, diff, gallery."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.as_json import AsJson, plan_json, run_json, show_json, stdout_for_json
from jointdit.errors import SpecError
from pipelines.spec.durations import seconds_of

if TYPE_CHECKING:
    from pipelines.ledger.entries import Outcome
    from pipelines.run.job import RunSummary
    from pipelines.spec.running import PriceSpec

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The job spec, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the spec; can be given several times."),
]
DatasetUri = Annotated[str, typer.Argument(metavar="URI", help="output.uri of a job: a folder or s3:// prefix.")]
LIMIT_REACHED = 3  # exit code of a run that stopped at a limit with work left


def run(
    spec: SpecFile,
    overrides: Overrides = None,
    single_writer: Annotated[
        bool,
        typer.Option("--single-writer", help="For a store without create-only writes: no other run writes there."),
    ] = False,
    if_idle: Annotated[
        bool, typer.Option("--if-idle", help="Exit with code 0 if another run is active; for scheduled runs.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop at this time of day, such as 06:00, after the current shards."),
    ] = None,
    zero_at_limit: Annotated[
        bool,
        typer.Option("--zero-at-limit", help="Exit with code 0 instead of 3 if the run stops at a limit."),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print a table of where the time went; the run's report has it too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start or resume a job. A finished job computes nothing.

    The exit code is 3 if the run stopped at --until or at a budget of the spec and samples are left.
    """
    from jobs.report import log_progress, say
    from pipelines.engine.limits import next_time
    from pipelines.ledger.lease import find_live
    from pipelines.run.job import run_job
    from pipelines.spec.job import load_spec
    from pipelines.store.storage import Storage

    log_progress()
    job = load_spec(spec, overrides or ())
    end = next_time(until) if until is not None else None
    if if_idle and (lease := find_live(Storage(job.output.uri))):
        if as_json:
            show_json({"output": job.output.uri, "active_run": lease})
        else:
            say(f"{job.output.uri} has an active run, {lease}: nothing was started.")
        return
    try:
        with stdout_for_json(as_json):
            summary = run_job(job, single_writer=single_writer, until=end, profile=profile)
    except KeyboardInterrupt:
        print("Interrupted: committed shards are kept; run the same command again to resume.", file=sys.stderr)
        raise
    end_run(summary, job.price, as_json, zero_at_limit)


def end_run(summary: RunSummary, price: PriceSpec, as_json: bool = False, zero_at_limit: bool = False) -> None:
    """Print what a run did, and exit with LIMIT_REACHED if it stopped at a limit."""
    from jobs.report import show_run

    if as_json:
        show_json(run_json(summary, price))
    else:
        show_run(summary, price)
    if summary.stopped is not None and not zero_at_limit:
        raise typer.Exit(LIMIT_REACHED)


def plan(spec: SpecFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read a few rows and show what a run would do: shards, expected bytes, memory, hours and cost. Writes nothing.

    The exit code is 1 if none of the rows that were read of a kind of input is usable.
    """
    from jobs.report import show_plan
    from pipelines.run.preview import preview
    from pipelines.spec.job import load_spec

    with stdout_for_json(as_json):
        found = preview(load_spec(spec, overrides or ()))
    if as_json:
        show_json(plan_json(found))
    else:
        show_plan(found)


def status(
    uri: DatasetUri,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the job is complete, with rate and time left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a job, read from its output alone."""
    from jobs.report import show_status
    from pipelines.dataset.status import read_status

    if watch:
        from jobs.watch import watch as follow

        follow(uri)
    elif as_json:
        show_json(read_status(uri).summary())
    else:
        show_status(read_status(uri))


def validate(
    uri: DatasetUri,
    quick: Annotated[bool, typer.Option("--quick", help="Check the account and file sizes, and open no file.")] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Read the files on the Ray cluster at RAY_ADDRESS, or on all CPUs here.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do not read files again that passed in the last check on this machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recount a dataset from its files alone. List what is lost, doubled or damaged, and exit with code 1 then."""
    from jobs.report import show_validation
    from jobs.validation import validate as recount

    if quick and (ray or resume):
        raise typer.BadParameter("--quick opens no file: leave out --ray and --resume.")
    with stdout_for_json(as_json):
        found = recount(uri, quick, ray, resume)
    if as_json:
        show_json({**asdict(found), "is_whole": not found.problems})
    else:
        show_validation(found)
    if found.problems:
        raise typer.Exit(1)


def publish(uri: DatasetUri, as_json: AsJson = False) -> None:
    """Publish what is committed, also while a run is active. The version is partial unless all that is planned is made.

    It needs no spec, no GPU and no Ray. The next run goes on from it.
    """
    from jobs.report import show_published
    from pipelines.dataset import about
    from pipelines.dataset.publish import publish_committed
    from pipelines.ledger.ledger import Ledger, open_output

    storage = open_output(uri)
    ledger = Ledger(storage)
    ledger.read_job()
    version, is_new = publish_committed(storage, ledger)
    about.refresh(storage, ledger)
    if as_json:
        show_json({"output": storage.uri, "version": version and version.to_json(), "is_new": is_new})
    else:
        show_published(storage.uri, version, is_new)


def retry(
    uri: DatasetUri,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Samples that could not be read or generated; fix the cause first.")
    ] = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Rejected samples: the same images, judged by the next run's filters.")
    ] = False,
) -> None:
    """Plan samples again, with the same ids and seeds. The next run generates them and publishes a version with them.

    For other images of rejected prompts use quality.regenerate.
    """
    from jobs.report import show_retry
    from pipelines.plan.retry import plan_retry

    asked: dict[Outcome, bool] = {"rejected": rejected, "quarantined": quarantined}
    chosen = [outcome for outcome, is_asked in asked.items() if is_asked]
    if not chosen:
        raise typer.BadParameter("nothing to retry was named: give --quarantined, --rejected or both.")
    show_retry(plan_retry(uri, chosen))


def refilter(
    uri: DatasetUri,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="quality.filters... or quality.keep_best; can be given several times."
        ),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", metavar="SPEC", help="Use the filters and keep_best of this job spec.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a version with other filters, decided from the stored scores. It needs no GPU and no Ray.

    The new filters also apply to later runs, until the next refilter. The original filters give the original version.
    """
    from jobs.report import show_refilter
    from pipelines.dataset.refilter import refilter as decide_anew

    found = decide_anew(uri, overrides or (), spec)
    if as_json:
        records = {"before": found.before.to_json(), "version": found.version.to_json()}
        show_json({**asdict(found), **records, "is_new": found.is_new})
    else:
        show_refilter(found)


def gc(
    uri: DatasetUri,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be deleted; delete nothing.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Keep younger files, by the store's clock: 90s, 30m, 12h, 7d.")
    ] = "1h",
    as_json: AsJson = False,
) -> None:
    """Delete orphaned files of failed attempts: those that no commit or version refers to or can come to refer to."""
    from jobs.report import show_garbage
    from pipelines.dataset.garbage import collect_garbage

    found = collect_garbage(uri, seconds_of_age(older_than), dry_run)
    if as_json:
        show_json({**asdict(found), "bytes": found.bytes, "dry_run": dry_run})
    else:
        show_garbage(found, dry_run)


def versions(uri: DatasetUri, as_json: AsJson = False) -> None:
    """List the published versions of a dataset."""
    from jobs.report import show_versions
    from pipelines.dataset.diff import list_versions

    found = list_versions(uri)
    if as_json:
        show_json([version.to_json() for version in found])
    else:
        show_versions(uri, found)


def files(
    uri: DatasetUri,
    version: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of a version; default: latest.")
    ] = None,
    outcome: Annotated[
        Literal["kept", "rejected", "quarantined"], typer.Option(help="Which samples the files hold.")
    ] = "kept",
    as_json: AsJson = False,
) -> None:
    """List the Parquet files of a version, one address a line, for DuckDB, Polars, Spark or Ray Data."""
    from pipelines.dataset.files import dataset_files

    found = dataset_files(uri, version, outcome)
    if as_json:
        show_json(list(found))
    else:
        for address in found:
            print(address)


def diff(
    uri: DatasetUri,
    first: Annotated[int, typer.Argument(metavar="V1", min=1, help="Number of a version.")],
    second: Annotated[int, typer.Argument(metavar="V2", min=1, help="Number of another version.")],
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions: samples added, gone, made again, or with another outcome."""
    from jobs.report import show_difference
    from pipelines.dataset.diff import compare

    found = compare(uri, first, second)
    if as_json:
        show_json({**asdict(found), "first": first, "second": second})
    else:
        show_difference(found)


def gallery(
    uri: DatasetUri,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder of the gallery.", show_default="gallery/ in the dataset"
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of samples.", show_default="output.gallery_rows of the job"),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the gallery in the browser.")] = False,
) -> None:
    """Write the gallery of a dataset's latest version again, with more rows or to a folder on this machine."""
    from jobs.report import say
    from pipelines.dataset.gallery import build
    from pipelines.store.storage import Storage

    if open_page and not Storage(output or uri).is_local:
        raise typer.BadParameter("--open needs a local gallery: add -o DIR, a folder on this machine.")
    page = build(uri, output, rows)
    say(f"gallery {page}")
    if open_page:
        typer.launch(Path(page).resolve().as_uri())


def seconds_of_age(age: str) -> float:
    """Return the seconds of an age like 90s, 30m, 12h or 7d. Raises SpecError for anything else."""
    seconds = seconds_of(age)
    if seconds is None:
        raise SpecError(f"--older-than {age!r} is no age: give a number with s, m, h or d, such as 12h.")
    return seconds
