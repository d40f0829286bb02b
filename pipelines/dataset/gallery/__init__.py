"""The gallery: a folder that shows what came out, kept, rejected and quarantined, and needs nothing but itself.

    write(storage, version, limit=None)    reads some rows of the version's tables, writes gallery/
    build(uri, output, limit)              the same of a published dataset, there or in another folder
    is_about(storage, version) -> bool     whether gallery/ is there and shows this version

It opens from a disk or a bucket: no server, no network. What is written, beside each other:

    index.html                  styles, programs and settings in one file                    page.py, page/
    vendor/                     three.js, loaded where points are turned                     vendor/
    000001-2000/index-000.js    text and scores of 1,000 rows: what is searched and sorted   blocks.py
    000001-2000/rows-00000.js   small images, depth and facts of ten rows, loaded when     blocks.py, images.py
                                they come into view

The folder's name is the version's number and the limit, so that a browser's cache never mixes two. Which rows are taken
where a version has more than the limit: selection.py; how they are read from its tables: rows.py.
"""

from __future__ import annotations

import re
from importlib.resources import files

from jointdit.errors import PermanentError
from pipelines.dataset.gallery.blocks import write_blocks
from pipelines.dataset.gallery.page import render, stamp_tag
from pipelines.dataset.gallery.rows import read_rows
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, read_latest
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage

DATA_FILE = re.compile(r"(?P<folder>(?P<version>\d{6})-\d+)/(index-\d{3}|rows-\d{5})\.js")
VENDORED = ("three.min.js", "LICENSE")


def write(storage: Storage, version: Version, limit: int | None = None) -> None:
    """Write gallery/ of a version with at most `limit` rows; default: the spec's output.gallery_rows.

    Rows of 512 x 512 pixels cost 0.65 MB read, 20 ms of one core and 30 kB written each (measured), shared by up to
    eight threads; memory is that of some tens of rows, whatever the limit. Raises TransientError and StoreError.
    """
    _write(storage, storage, "gallery/", version, limit)


def build(uri: str, output: str | None = None, limit: int | None = None) -> str:
    """Write the gallery of a dataset's latest version into it, or into the folder `output`; the address of the page.

    Raises:
        PermanentError: nothing is published, or it has no images.
        StoreError: there is no job.
    """
    storage = Storage(uri)
    Ledger(storage).read_job()
    version = read_latest(storage)
    if version is None:
        raise PermanentError(f"{storage.uri} has no published version: run its job to the end first.")
    if not has_images(version):
        raise PermanentError(f"{storage.uri} holds latents: there is nothing to look at.")
    target, prefix = (storage, "gallery/") if output is None else (Storage(output), "")
    folder = _write(storage, target, prefix, version, limit)
    for name in target.names(prefix.rstrip("/")):  # of other limits: nobody else builds by hand at the same time
        found = DATA_FILE.fullmatch(name)
        if found and found["folder"] != folder:
            target.delete(f"{prefix}{name}")
    return target.uri_of(f"{prefix}index.html")


def has_images(version: Version) -> bool:
    """Whether there is something to look at: latents are not."""
    return bool(version.spec["task"] != "encode")


def is_about(storage: Storage, version: Version) -> bool:
    """Whether gallery/index.html is that of this version."""
    try:
        page = storage.read_bytes("gallery/index.html")
    except FileNotFoundError:
        return False
    return stamp_tag(version).encode() in page


def _write(source: Storage, target: Storage, prefix: str, version: Version, limit: int | None) -> str:
    """Write a gallery; its folder of data. The page comes last, so that it never names what is not there.

    What an earlier version used goes then, and nothing of a later one: a slower driver may be at an older version.
    """
    spec = load_spec(version.spec)
    most = spec.output.gallery_rows if limit is None else limit
    folder = f"{version.number:06d}-{most}"
    written = write_blocks(target, f"{prefix}{folder}", read_rows(source, version, most))
    for name in VENDORED:
        target.write_bytes(f"{prefix}vendor/{name}", files(__name__).joinpath("vendor", name).read_bytes())
    page = render(version, spec, folder, written, beside_dataset=source is target)
    target.write_bytes(f"{prefix}index.html", page)
    for name in target.names(prefix.rstrip("/")):
        found = DATA_FILE.fullmatch(name)
        if found and int(found["version"]) < version.number:
            target.delete(f"{prefix}{name}")
    return folder
