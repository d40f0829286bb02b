"""The files of a gallery: which rows they show, what they contain, and which are deleted later."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdit.errors import PermanentError
from jointdit.geometry.depth import encode_depth_png
from pipelines.dataset import gallery
from pipelines.dataset.gallery.images import NEAREST, depth_grid, pack, thumbnail
from pipelines.dataset.gallery.rows import read_rows
from pipelines.dataset.gallery.selection import shares, spread
from pipelines.ledger.entries import OUTCOMES
from pipelines.ledger.segments import VersionFile
from pipelines.ledger.versions import Version
from pipelines.store.storage import Storage
from tests.published import FIRST, publish_tables, quarantined, rejected, slope

NASTY = """<script>alert("x")</script><img src=x onerror=alert(1)> & 'single' </article>\u2028"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "dataset"))


@pytest.fixture
def version(storage: Storage) -> Version:
    """Twelve kept samples in two files, one rejected, one quarantined; and a file of an attempt that lost."""
    publish_tables(storage, [("loser", "kept", [slope(77)])])
    return publish_tables(
        storage,
        [
            ("one", "kept", [slope(number) for number in range(8)]),
            ("two", "kept", [slope(number) for number in range(8, 12)]),
            ("one", "rejected", [rejected(12, "depth_range: too flat", "other")]),
            ("one", "quarantined", [quarantined(13, f"bad row {NASTY}", "Traceback ...")]),
        ],
    )


def calls(storage: Storage, pattern: str) -> dict[int, Any]:
    """The values that the data files of a kind call with, by number."""
    found = {}
    for name in storage.names("gallery"):
        if re.search(pattern, name):
            call = re.fullmatch(
                r"gallery\.(index|rows)\((\d+),(.*)\)\n", storage.read_bytes(f"gallery/{name}").decode()
            )
            assert call, f"{name} is one call"
            found[int(call[2])] = json.loads(call[3])
    return found


def settings_of(page: bytes) -> dict[str, Any]:
    found = re.search('<script type="application/json" id="settings">(.*?)</script>', page.decode(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_all_rows_are_there_with_what_the_tables_say(storage: Storage, version: Version) -> None:
    gallery.write(storage, version)
    (columns,) = calls(storage, "/index-").values()
    assert columns["id"] == [f"row-{number}/0" for number in range(14)]
    assert columns["outcome"] == [0] * 12 + [1, 2]
    assert columns["prompt"][3] == "prompt number 3"
    assert columns["reasons"][12:] == [["depth_range: too flat", "other"], [f"bad row {NASTY}"]]
    assert columns["scores"][FIRST] == [number / 4 for number in range(13)] + [None]
    blocks = calls(storage, "/rows-")
    rows = [row for number in sorted(blocks) for row in blocks[number]]
    assert len(rows) == 14
    assert rows[0]["facts"]["seed"] == "0"
    assert rows[0]["facts"]["depth_kind"] == "relative_disparity"
    assert rows[0]["pointcloud"] == "pointclouds/a b/00000.ply"
    assert "pointcloud" not in rows[1]
    assert set(rows[13]) == {"facts", "traceback"}
    assert rows[13]["facts"] == {"input": "in/rows.txt:13"}
    image = Image.open(io.BytesIO(base64.b64decode(rows[5]["rgb"])))
    assert image.size == (60, 40)
    assert np.abs(np.asarray(image).astype(int) - slope(5).rgb).mean() < 6


def test_the_page_allows_its_own_programs_alone_and_names_nothing_outside(storage: Storage, version: Version) -> None:
    gallery.write(storage, version)
    page = storage.read_bytes("gallery/index.html").decode()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    directives = dict(part.strip().split(" ", 1) for part in policy[1].split(";"))
    assert directives["default-src"] == "'none'"

    def sources(tag: str) -> list[str]:
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inside]

    assert directives["script-src"].split() == [*sources("script"), "'strict-dynamic'"]
    assert directives["style-src"].split() == sources("style")
    assert not [
        found for found in re.findall(r"https?://[^'\"\s]*", page) if not found.startswith("http://www.w3.org/")
    ]
    assert settings_of(page.encode())["shown"] == [12, 1, 1]


def test_a_name_from_the_spec_stays_text(storage: Storage, version: Version) -> None:
    gallery.write(storage, replace(version, recorded_spec={**version.recorded_spec, "name": NASTY}))
    page = storage.read_bytes("gallery/index.html")
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page.decode())
    assert settings_of(page)["name"] == NASTY
    assert "article" not in tags
    programs = len(list(Path(gallery.__file__).with_name("page").glob("*.js")))
    assert tags.count("script") == programs + 1, "the settings, and one element a program"
    assert tags.count("img") == 1, "the slider's, which has no source"


def test_a_limit_takes_rows_of_every_outcome_and_file(storage: Storage, version: Version) -> None:
    gallery.write(storage, version, limit=6)
    (columns,) = calls(storage, "/index-").values()
    assert columns["id"] == ["row-0/0", "row-1/0", "row-8/0", "row-9/0", "row-12/0", "row-13/0"]
    settings = settings_of(storage.read_bytes("gallery/index.html"))
    assert (settings["counts"], settings["shown"]) == ([12, 1, 1], [4, 1, 1])


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_rows_are_spread_over_files_in_proportion(rows: list[int], count: int) -> None:
    files = [VersionFile(str(number), "kept", size, 0, "", "") for number, size in enumerate(rows)]
    taken = {file.path: share for file, share in spread(files, sum(rows), count)}
    assert sum(taken.values()) == min(count, sum(rows))
    for file in files:
        exact = min(count, sum(rows)) * file.rows / max(sum(rows), 1)
        assert abs(taken.get(file.path, 0) - exact) < 1
        assert taken.get(file.path, 0) <= file.rows


@given(st.tuples(*[st.integers(0, 1000)] * 3), st.integers(0, 2000))
def test_rare_outcomes_are_shown_whole(counts: tuple[int, int, int], limit: int) -> None:
    there = dict(zip(OUTCOMES, counts, strict=True))
    chosen = shares(there, limit)
    assert sum(chosen.values()) == min(limit, sum(counts))
    assert all(chosen[outcome] == there[outcome] or chosen[outcome] >= limit // 3 for outcome in OUTCOMES)


def test_depth_comes_back_from_its_packing() -> None:
    values = np.random.default_rng(0).integers(0, NEAREST + 1, (9, 13), dtype=np.int32)
    low_high = np.frombuffer(zlib.decompress(pack(values)), np.uint8).reshape(2, -1).astype(np.int64)
    coded = (low_high[0] | low_high[1] << 8).reshape(values.shape)
    difference = (coded >> 1) ^ -(coded & 1)
    assert (difference.cumsum(axis=0).cumsum(axis=1) == values).all()


def test_depth_is_picked_and_holes_stay_holes() -> None:
    disparity = np.zeros((300, 200), np.float32)
    disparity[:, 100:] = 1.0
    valid = np.ones((300, 200), bool)
    valid[:150] = False
    grid = depth_grid(encode_depth_png(disparity, valid), has_holes=True)
    assert grid is not None
    assert (grid["width"], grid["height"]) == (85, 128)
    packed = np.frombuffer(zlib.decompress(base64.b64decode(grid["data"])), np.uint8).reshape(2, -1).astype(np.int64)
    coded = (packed[0] | packed[1] << 8).reshape(128, 85)
    values = ((coded >> 1) ^ -(coded & 1)).cumsum(axis=0).cumsum(axis=1)
    assert set(np.unique(values)) == {0, 1, NEAREST}, "no mean of two sides of an edge"
    assert (values[:64] == 0).all()
    assert (values[64:] > 0).all()


def test_a_damaged_image_leaves_the_rest(storage: Storage) -> None:
    assert thumbnail(b"no image") is None
    assert depth_grid(b"no image") is None
    assert thumbnail(None) is None


def test_a_new_version_takes_the_place_of_the_old_one_and_of_its_files(storage: Storage, version: Version) -> None:
    gallery.write(storage, version)
    assert gallery.is_about(storage, version)
    newer = publish_tables(storage, [("three", "kept", [slope(1)])], number=2)
    assert not gallery.is_about(storage, newer)
    gallery.write(storage, newer)
    assert gallery.is_about(storage, newer)
    assert not gallery.is_about(storage, version)
    assert storage.names("gallery") == [
        "000002-2000/index-000.js",
        "000002-2000/rows-00000.js",
        "index.html",
        "vendor/LICENSE",
        "vendor/three.min.js",
    ]


def test_a_slower_driver_at_an_older_version_takes_nothing_from_the_newer_one(
    storage: Storage, version: Version
) -> None:
    newer = publish_tables(storage, [("three", "kept", [slope(1)])], number=2)
    gallery.write(storage, newer)
    gallery.write(storage, version)
    assert "000002-2000/rows-00000.js" in storage.names("gallery")


def test_the_same_version_gives_the_same_bytes(storage: Storage, version: Version) -> None:
    gallery.write(storage, version)
    before = {name: storage.read_bytes(f"gallery/{name}") for name in storage.names("gallery")}
    gallery.write(storage, version)
    assert {name: storage.read_bytes(f"gallery/{name}") for name in storage.names("gallery")} == before


def test_a_version_without_a_row_has_a_page(storage: Storage) -> None:
    gallery.write(storage, publish_tables(storage, []))
    assert settings_of(storage.read_bytes("gallery/index.html"))["indexes"] == 0


def test_rows_are_read_as_they_are_wanted(storage: Storage, version: Version) -> None:
    """Memory is that of the rows in hand: the second file is not opened for the first row."""
    rows = read_rows(storage, version, 100)
    assert next(rows).id == "row-0/0"
    storage.delete("data/two-a.parquet")
    with pytest.raises(FileNotFoundError):
        list(rows)


def test_a_gallery_of_a_published_job_in_a_folder_of_its_own(make_job: Any, tmp_path: Path) -> None:
    job = make_job(["a cube", "a sphere", "FLAT"], quality={"filters": [{"kind": "depth_range", "min_span": 0.1}]})
    job.plan()
    with pytest.raises(PermanentError, match="has no version yet"):
        gallery.build(job.context.storage.uri)
    job.run()
    job.publish()
    page = gallery.build(job.context.storage.uri, str(tmp_path / "elsewhere"), 2)
    assert page == str(tmp_path / "elsewhere" / "index.html")
    settings = settings_of(Path(page).read_bytes())
    assert settings["dataset"] is None, "no link leads from there to the dataset"
    assert settings["shown"] == [1, 1, 0]
    here = Path(gallery.build(job.context.storage.uri, limit=1))
    assert settings_of(here.read_bytes())["dataset"] == "../"
    folders = {path.name for path in here.parent.iterdir() if path.is_dir()}
    assert folders == {"vendor", "000001-1"}, "those of another limit are gone"
