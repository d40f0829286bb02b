"""The gallery: a page that shows kept, rejected and quarantined samples without a server.

    write(storage, version, limit=None)    read some rows of the version's tables and write gallery/
    build(uri, output, limit)              the same for a published dataset, in place or into another folder
    is_about(storage, version) -> bool     whether gallery/ exists and shows this version

It opens from a disk or a bucket. It consists of:

    index.html                  styles, scripts and settings in one file                     page.py, page/
    vendor/                     three.js, loaded when points are rotated                     vendor/
    000001-2000/index-000.js    text and scores of 1,000 rows, for search and sorting        blocks.py
    000001-2000/rows-00000.js   thumbnails, depth and facts of ten rows, loaded when they    blocks.py, images.py
                                scroll into view

The folder's name is the version's number and the limit, so that a browser's cache never mixes two of them. selection.py
chooses the rows where a version has more than the limit; rows.py reads them from the tables.
"""

from __future__ import annotations

import re
from importlib.resources import files

from jointdit.errors import PermanentError
from pipelines.dataset.gallery.blocks import write_blocks
from pipelines.dataset.gallery.page import render, stamp_tag
from pipelines.dataset.gallery.rows import read_rows
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, require_latest
from pipelines.store.storage import Storage

DATA_FILE = re.compile(r"(?P<folder>(?P<version>\d{6})-\d+)/(index-\d{3}|rows-\d{5})\.js")
VENDORED = ("three.min.js", "LICENSE")


def write(storage: Storage, version: Version, limit: int | None = None) -> None:
    """Write gallery/ for a version with at most `limit` rows; default: the spec's output.gallery_rows.

    For 512 x 512 pixels a row reads 0.65 MB, takes 20 ms of one core and writes 30 kB (measured), shared by up to eight
    threads. Memory is that of some tens of rows, whatever the limit. Raises TransientError and StoreError.
    """
    _write(storage, storage, "gallery/", version, limit)


def build(uri: str, output: str | None = None, limit: int | None = None) -> str:
    """Write the gallery of a dataset's latest version, into it or into the folder `output`. Returns the page's address.

    Raises:
        PermanentError: nothing is published, or the dataset has no images.
        StoreError: there is no job.
    """
    storage = Storage(uri)
    Ledger(storage).read_job()
    version = require_latest(storage)
    if not has_images(version):
        raise PermanentError(f"{storage.uri} holds latents and no images: build the gallery of another dataset.")
    target, prefix = (storage, "gallery/") if output is None else (Storage(output), "")
    folder = _write(storage, target, prefix, version, limit)
    for name in target.names(prefix.rstrip("/")):  # of other limits; nobody else builds a gallery here at the same time
        data_file = DATA_FILE.fullmatch(name)
        if data_file and data_file["folder"] != folder:
            target.delete(f"{prefix}{name}")
    return target.uri_of(f"{prefix}index.html")


def has_images(version: Version) -> bool:
    """Return whether the dataset has images. Task `encode` writes latents only."""
    return version.spec.task != "encode"


def is_about(storage: Storage, version: Version) -> bool:
    """Return whether gallery/index.html is about this version."""
    try:
        page = storage.read_bytes("gallery/index.html")
    except FileNotFoundError:
        return False
    return stamp_tag(version).encode() in page


def _write(source: Storage, target: Storage, prefix: str, version: Version, limit: int | None) -> str:
    """Write a gallery. Returns the name of its data folder. The page is written last, so it never names a missing file.

    Data of earlier versions is deleted, and none of a later one, because a slow driver may write an older version.
    """
    most = version.spec.output.gallery_rows if limit is None else limit
    folder = f"{version.number:06d}-{most}"
    written = write_blocks(target, f"{prefix}{folder}", read_rows(source, version, most))
    for name in VENDORED:
        target.write_bytes(f"{prefix}vendor/{name}", files(__name__).joinpath("vendor", name).read_bytes())
    page = render(version, folder, written, beside_dataset=source is target)
    target.write_bytes(f"{prefix}index.html", page)
    for name in target.names(prefix.rstrip("/")):
        data_file = DATA_FILE.fullmatch(name)
        if data_file and int(data_file["version"]) < version.number:
            target.delete(f"{prefix}{name}")
    return folder
