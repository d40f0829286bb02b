"""The gallery as a browser reads it, of the version's own files alone."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from pipelines import gallery
from pipelines.ledger import Job, Outcome, sha256
from pipelines.publish import Version, VersionFile
from pipelines.quality import measure
from pipelines.records import Row, Sample, SampleResult
from pipelines.sinks.parquet import encode_samples, table_bytes
from pipelines.spec import JobSpec, load_spec
from pipelines.storage import Storage

NASTY = """<script>alert("x")</script><img src=x onerror=alert(1)> & "quotes" 'single' </article>"""


def job() -> JobSpec:
    return load_spec({"task": "joint", "name": "rooms", "input": {"uri": "in"}, "output": {"uri": "out"}})


def result(number: int, prompt: str, **fields: Any) -> SampleResult:
    random = np.random.default_rng(number)
    row = Row(f"row-{number}", "in/rows.txt", number, prompt=prompt)
    made = SampleResult(
        Sample(f"row-{number}/0", row, 0, 0, seed=number),
        rgb=random.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        disparity=random.random((40, 60), dtype=np.float32),
    )
    made.scores = measure(made)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def store(storage: Storage, name: str, outcome: Outcome, results: list[SampleResult]) -> VersionFile:
    pointclouds = {"row-0/0": "pointclouds/a b/00000.ply"}
    data = table_bytes(encode_samples(results, job(), outcome, pointclouds))
    storage.write_bytes(name, data)
    return VersionFile(name, outcome, len(results), len(data), sha256(data), name.split("/")[1])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "dataset"))


JOB = Job(spec={}, fingerprint={"task": "joint", "model.weights": "ab" * 32}, code="0.1.0", created="")


@pytest.fixture
def version(storage: Storage) -> Version:
    """Three kept samples in two files, one rejected, one quarantined; and a file of an attempt that lost."""
    store(storage, "data/loser-token.parquet", "kept", [result(77, "a loser")])
    error = {"rgb": None, "disparity": None, "error": f"bad row {NASTY}", "traceback": f"Traceback {NASTY}"}
    files = (
        store(storage, "data/one-a.parquet", "kept", [result(0, NASTY), result(1, "a red sphere")]),
        store(storage, "data/two-b.parquet", "kept", [result(2, "a cube")]),
        store(storage, "rejected/one-a.parquet", "rejected", [result(4, "flat", reasons=["depth_range: too flat"])]),
        store(storage, "quarantine/one-a.parquet", "quarantined", [result(5, "broken", **error)]),
    )
    return Version(
        number=1,
        counts={"kept": 3, "rejected": 1, "quarantined": 1},
        files=files,
        superseded=0,
        reasons={"depth_range": 1},
        plans=(1,),
        outcomes_sha256="",
        created="2026-01-02T03:04:05+00:00",
        code="0.1.0",
        spec=job().model_dump(mode="json"),
    )


def renamed(version: Version, name: str) -> Version:
    return replace(version, spec={**version.spec, "name": name})


# --- the gallery ---


def test_a_version_that_kept_nothing_has_a_gallery(storage: Storage, version: Version) -> None:
    nothing = replace(version, files=(), counts=dict.fromkeys(version.counts, 0), reasons={})
    gallery.write(storage, JOB, nothing)
    assert b"No sample was kept" in storage.read_bytes("gallery/index.html")


class Page(HTMLParser):
    """What a browser would build: tags with attributes, and text by the class of the element it is in."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(f"{tag}.{dict(attrs).get('class', '')}")

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open:
            self.texts.append((self._open[-1], data))


def page_of(storage: Storage, version: Version, limit: int = 240) -> Page:
    gallery.write(storage, JOB, version, limit)
    return Page(storage.read_bytes("gallery/index.html"))


def test_text_from_the_input_stays_text(storage: Storage, version: Version) -> None:
    page = page_of(storage, renamed(version, NASTY))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert ("p.prompt", NASTY) in page.texts
    assert ("p.reason", f"bad row {NASTY}") in page.texts
    assert ("pre.", f"Traceback {NASTY}") in page.texts
    assert ("h1.", NASTY) in page.texts
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(str(attributes["src"]).startswith("data:image/webp;base64,") for attributes in images)


def test_every_field_of_a_card_is_escaped(version: Version) -> None:
    row = gallery.GalleryRow(
        NASTY,
        "rejected",
        NASTY,
        facts={NASTY: NASTY},
        scores={NASTY: 1.0},
        reasons=[NASTY],
        error=NASTY,
        pointcloud=NASTY,
    )
    page = Page(gallery.render(version, [row]))
    assert [tag for tag, _ in page.tags if tag in ("img", "script", "article")] == ["article", "script"]
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a" and "download" in attributes] == [
        f"../{quote(NASTY)}"
    ]


def test_the_policy_allows_the_pages_own_script_alone(storage: Storage, version: Version) -> None:
    gallery.write(storage, JOB, version)
    html = storage.read_bytes("gallery/index.html").decode()
    script = re.search("<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy.group(1)
    assert policy.group(1).startswith("default-src 'none'")
    assert not re.search(r"https?://", html)  # nothing is fetched


def test_the_page_shows_each_outcome_with_its_pictures_and_reasons(storage: Storage, version: Version) -> None:
    page = page_of(storage, version)
    cards = [str(attributes["class"]) for tag, attributes in page.tags if tag == "article"]
    assert cards == ["card kept"] * 3 + ["card rejected", "card quarantined"]
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "img"] == ["rgb", "depth"] * 4
    assert ("p.reason", "depth_range: too flat") in page.texts
    assert "../pointclouds/a%20b/00000.ply" in [attributes.get("href") for tag, attributes in page.tags if tag == "a"]


def test_a_limit_takes_rows_from_all_files_and_says_so(storage: Storage, version: Version) -> None:
    page = page_of(storage, version, limit=2)
    ids = [text for where, text in page.texts if where == "p.id"]
    assert ids == ["row-0/0", "row-2/0", "row-4/0", "row-5/0"]
    assert ("p.note", "Showing 2 of 3.") in page.texts


def test_near_is_bright_and_far_is_dark() -> None:
    colours = gallery.colour_depth(np.linspace(0, 1, 101, dtype=np.float32)[None])
    lightness = colours[0].astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > -0.5).all()
    assert lightness[0] < 25
    assert lightness[-1] > 220


def test_thumbnails_keep_the_aspect(storage: Storage, version: Version) -> None:
    page = page_of(storage, version)
    source = next(str(attributes["src"]) for tag, attributes in page.tags if tag == "img")
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert image.size == (60, 40)
