"""`jointdit export`: the kept samples of a dataset in other forms; cli.py gives it its place."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.datasets import DatasetUri
from jointdit.errors import SpecError


def export(
    uri: DatasetUri,
    webdataset: Annotated[
        str | None, typer.Option(metavar="DIR", help="WebDataset tars into this folder or s3:// prefix.")
    ] = None,
    hf: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder that load_dataset opens, with card, figures and points.")
    ] = None,
) -> None:
    """Copy the kept samples of the latest version, as tars or as a folder of tables with a card of its own."""
    from jobs.report import readable, say, several
    from pipelines.dataset.export import export_hf, export_webdataset

    if webdataset is None and hf is None:
        raise SpecError("export needs a place and a form: give --webdataset DIR, or --hf DIR, or both.")
    for target, form, thing in ((webdataset, export_webdataset, "tar"), (hf, export_hf, "table")):
        if target is not None:
            made = form(uri, target)
            files = f"{several(made.files, thing)}, {readable(made.bytes)}"
            say(f"{target}: {several(made.samples, 'sample')} of version {made.version} in {files}")
