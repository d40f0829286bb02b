"""Commands that look after a dataset that is there: retry, gc, versions, diff. cli.py puts them on the command line."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jointdit.errors import SpecError

if TYPE_CHECKING:
    from pipelines.ledger import Outcome

DatasetUri = Annotated[str, typer.Argument(metavar="URI", help="output.uri of a job: a folder or s3:// prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for scripts.")]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def retry(
    uri: DatasetUri,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="What could not be read or made; its cause should be mended.")
    ] = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="What filters rejected: the same pictures under the next run's filters.")
    ] = False,
) -> None:
    """Plan samples again, with the ids and seeds they have; the next run makes them and its version has the new ones.

    Rejected prompts get new pictures by quality.regenerate, not here.
    """
    from jobs.report import show_retry
    from pipelines.retry import plan_retry

    asked: dict[Outcome, bool] = {"rejected": rejected, "quarantined": quarantined}
    chosen = [outcome for outcome, wanted in asked.items() if wanted]
    if not chosen:
        raise typer.BadParameter("say what to try again: --quarantined, --rejected or both.")
    show_retry(plan_retry(uri, chosen))


def gc(
    uri: DatasetUri,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Only what is older as well, by the store's clock: 90s, 30m, 12h, 7d.")
    ] = "0s",
    as_json: AsJson = False,
) -> None:
    """Delete the files of attempts that lost or died: those that no commit and no version names or can come to name."""
    from jobs.report import show_garbage
    from pipelines.garbage import collect_garbage

    found = collect_garbage(uri, seconds_of(older_than), dry_run)
    if as_json:
        show_json({**asdict(found), "bytes": found.bytes, "dry_run": dry_run})
    else:
        show_garbage(found, dry_run)


def versions(uri: DatasetUri, as_json: AsJson = False) -> None:
    """List the published versions of a dataset."""
    from jobs.report import show_versions
    from pipelines.versions import list_versions

    found = list_versions(uri)
    if as_json:
        show_json([asdict(version) for version in found])
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
    from pipelines.versions import compare

    found = compare(uri, first, second)
    if as_json:
        show_json({**asdict(found), "first": first, "second": second})
    else:
        show_difference(found)


def seconds_of(age: str) -> float:
    """Seconds of an age like 90s, 30m, 12h or 7d. Raises SpecError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", age.strip())
    if match is None:
        raise SpecError(f"--older-than {age!r} is no age: give a number and s, m, h or d, such as 12h.")
    return float(match[1]) * UNITS[match[2]]


def show_json(content: Any) -> None:
    """Print for scripts."""
    print(json.dumps(content, indent=2))
