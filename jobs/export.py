"""`jointdit export`: the kept samples of a dataset in the formats of other tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.as_json import AsJson, show_json, stdout_for_json
from jobs.datasets import DatasetUri
from jointdit.errors import SpecError


def export(
    uri: DatasetUri,
    webdataset: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write WebDataset tars to this folder or s3:// prefix.")
    ] = None,
    hf: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a folder for load_dataset, with card, figures and points.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy the kept samples of the latest version, as tars or as a folder of tables with its own card."""
    from jobs.report import readable, say, several
    from pipelines.dataset.export import export_hf, export_webdataset

    if webdataset is None and hf is None:
        raise SpecError("export has no target: give --webdataset DIR, --hf DIR, or both.")
    exports = {}
    for target, form, thing in ((webdataset, export_webdataset, "tar"), (hf, export_hf, "table")):
        if target is not None:
            with stdout_for_json(as_json):
                made = form(uri, target)
                files = f"{several(made.files, thing)}, {readable(made.bytes)}"
                say(f"{target}: {several(made.samples, 'sample')} of version {made.version} in {files}")
            exports[made.kind] = {"target": target, **asdict(made)}
    if as_json:
        show_json(exports)
