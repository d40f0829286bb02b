"""The commands of datasets: run, plan, status, validate, retry, refilter, gc, versions, diff, gallery."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jointdit.errors import SpecError

if TYPE_CHECKING:
    from pipelines.ledger.entries import Outcome

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The job spec, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the spec; can be given several times."),
]
DatasetUri = Annotated[str, typer.Argument(metavar="URI", help="output.uri of a job: a folder or s3:// prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for scripts.")]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def run(
    spec: SpecFile,
    overrides: Overrides = None,
    single_writer: Annotated[
        bool,
        typer.Option("--single-writer", help="For a store without create-only writes: nobody else writes there."),
    ] = False,
    if_idle: Annotated[
        bool, typer.Option("--if-idle", help="Leave, with exit code 0, where a driver is at work: for scheduled runs.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Stop at this time, 06:00, when workers have finished the shard they are at."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="End with a table of where the time went; the run's report has it too.")
    ] = False,
) -> None:
    """Run a job, or go on with one that was interrupted; a finished job does nothing."""
    from jobs.report import log_progress, say, show_run
    from pipelines.engine.limits import next_time
    from pipelines.ledger.lease import find_live
    from pipelines.run.job import run_job
    from pipelines.spec.job import load_spec
    from pipelines.store.storage import Storage

    log_progress()
    job = load_spec(spec, overrides or ())
    end = next_time(until) if until is not None else None
    if if_idle and (lease := find_live(Storage(job.output.uri))):
        say(f"{job.output.uri} is being worked on by {lease}: left to it.")
        return
    try:
        show_run(run_job(job, single_writer=single_writer, until=end, profile=profile), job.price)
    except KeyboardInterrupt:
        print("Interrupted: what is committed stays, and the same command goes on from there.", file=sys.stderr)
        raise


def plan(spec: SpecFile, overrides: Overrides = None) -> None:
    """Say what a run would do: shards, rows, what is done already, the bytes and memory to expect. Writes nothing."""
    from jobs.report import show_plan
    from pipelines.run.preview import preview
    from pipelines.spec.job import load_spec

    show_plan(preview(load_spec(spec, overrides or ())))


def status(
    uri: DatasetUri,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again until it is complete, with rate and time left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell how far a job is, from its ledger alone."""
    from jobs.report import show_status
    from pipelines.dataset.status import read_status

    if watch:
        from jobs.watch import watch as follow

        follow(uri)
    elif as_json:
        show_json(read_status(uri).summary())
    else:
        show_status(read_status(uri))


def validate(uri: DatasetUri) -> None:
    """Recount a dataset from its files alone; exit code 1 and the list if a sample is lost, doubled or damaged."""
    from jobs.report import show_validation
    from pipelines.dataset.validation.validate import validate as recount

    if not show_validation(recount(uri)):
        raise typer.Exit(1)


def retry(
    uri: DatasetUri,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="What could not be read or made; its cause should be mended.")
    ] = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="What filters rejected: the same images under the next run's filters.")
    ] = False,
) -> None:
    """Plan samples again, with the ids and seeds they have; the next run makes them and its version has the new ones.

    Rejected prompts get new images by quality.regenerate, not here.
    """
    from jobs.report import show_retry
    from pipelines.plan.retry import plan_retry

    asked: dict[Outcome, bool] = {"rejected": rejected, "quarantined": quarantined}
    chosen = [outcome for outcome, wanted in asked.items() if wanted]
    if not chosen:
        raise typer.BadParameter("say what to try again: --quarantined, --rejected or both.")
    show_retry(plan_retry(uri, chosen))


def refilter(
    uri: DatasetUri,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="quality.filters..., or quality.keep_best; several times."),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", metavar="SPEC", help="Take the filters and keep_best of this job spec.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a version with other filters from the stored scores: no GPU, no Ray, no image decoded.

    They hold for what later runs make too, until the next refilter. The original ones give the original version back.
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Keep what is younger, by the store's clock: 90s, 30m, 12h, 7d.")
    ] = "1h",
    as_json: AsJson = False,
) -> None:
    """Delete the files of attempts that lost or died: those that no commit and no version names or can come to name."""
    from jobs.report import show_garbage
    from pipelines.dataset.garbage import collect_garbage

    found = collect_garbage(uri, seconds_of(older_than), dry_run)
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


def diff(
    uri: DatasetUri,
    first: Annotated[int, typer.Argument(metavar="V1", min=1, help="Number of a version.")],
    second: Annotated[int, typer.Argument(metavar="V2", min=1, help="Number of another one.")],
    as_json: AsJson = False,
) -> None:
    """Tell what changed between two versions: samples added, gone, with another outcome, made again."""
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
            "-o", "--output", metavar="DIR", help="Another folder for it.", show_default="gallery/ in the dataset"
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many samples.", show_default="output.gallery_rows of the job"),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the gallery of a dataset's latest version again: with more rows, or for a copy on this machine."""
    from jobs.report import say
    from pipelines.dataset.gallery import build
    from pipelines.store.storage import Storage

    if open_page and not Storage(output or uri).is_local:
        raise typer.BadParameter("a browser opens it from a disk: add -o DIR, a folder of this machine.")
    page = build(uri, output, rows)
    say(f"gallery {page}")
    if open_page:
        typer.launch(Path(page).resolve().as_uri())


def seconds_of(age: str) -> float:
    """Seconds of an age like 90s, 30m, 12h or 7d. Raises SpecError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", age.strip())
    if match is None:
        raise SpecError(f"--older-than {age!r} is no age: give a number and s, m, h or d, such as 12h.")
    return float(match[1]) * UNITS[match[2]]


def show_json(content: Any) -> None:
    """Print for scripts."""
    print(json.dumps(content, indent=2))
