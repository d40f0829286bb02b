"""The dataset card as Hugging Face, mlcroissant and people read it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipelines.dataset import card
from pipelines.dataset.card import figures, tables
from pipelines.ledger.entries import Job, Outcome, sha256
from pipelines.ledger.segments import VersionFile
from pipelines.ledger.versions import Version, sizes_of
from pipelines.quality import SCORES, measure
from pipelines.records import Row, Sample, SampleResult
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.sinks.parquet import encode_samples, table_bytes
from pipelines.stages.sinks.ply import read_ply
from pipelines.store.storage import Storage

NASTY = """<script>alert("x")</script> | `x` [a](http://b) ![i](http://c) www.d.e & "quotes"\n## heading"""
POINTS: dict[str, Any] = {"format": "both", "confidence": True}


def job(**points: Any) -> JobSpec:
    return load_spec(
        {"task": "joint", "name": "rooms", "input": {"uri": "in"}, "output": {"uri": "out", "points": points}}
    )


def result(number: int, prompt: str, **fields: Any) -> SampleResult:
    random = np.random.default_rng(number)
    row = Row(f"row-{number}", "in/rows.txt", number, prompt=prompt)
    ramp = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60)
    made = SampleResult(
        Sample(f"row-{number}/0", row, 0, 0, seed=number),
        rgb=random.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        disparity=ramp ** (1 + number),
    )
    made.scores = measure(made)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def store(
    storage: Storage, name: str, outcome: Outcome, results: list[SampleResult], spec: JobSpec | None = None
) -> VersionFile:
    data = table_bytes(encode_samples(results, spec or job(), outcome))
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
        listed=files,
        sizes=sizes_of(files),
        superseded=0,
        reasons={"depth_range": 1},
        plans=(1,),
        created="2026-01-02T03:04:05+00:00",
        code="0.1.0",
        recorded_spec=job(format="ply").as_given(),
    )


def renamed(version: Version, name: str) -> Version:
    return replace(version, recorded_spec={**version.recorded_spec, "name": name})


def readme(storage: Storage) -> str:
    return storage.read_bytes("README.md").decode()


def front_matter(storage: Storage) -> dict[str, Any]:
    return yaml.safe_load(readme(storage).split("---\n")[1])


# --- as load_dataset reads it ---


def test_load_dataset_of_the_folder_gives_the_versions_files_and_no_other(
    storage: Storage, version: Version, tmp_path: Path
) -> None:
    import datasets

    card.write(storage, JOB, version)
    found = datasets.load_dataset(storage.uri, cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    assert found["train"]["id"][:] == ["row-0/0", "row-1/0", "row-2/0"]
    assert isinstance(found["train"][0]["rgb"], Image.Image)
    assert np.asarray(found["train"][0]["depth"]).max() == 65535
    rejected = datasets.load_dataset(storage.uri, "rejected", split="train", cache_dir=str(tmp_path / "cache"))
    assert rejected["reasons"][:] == [["depth_range: too flat"]]
    quarantined = datasets.load_dataset(storage.uri, "quarantined", split="train", cache_dir=str(tmp_path / "cache"))
    assert quarantined["id"][:] == ["row-5/0"]


def test_files_of_other_settings_load_together(storage: Storage, version: Version, tmp_path: Path) -> None:
    """Points and scores may change between runs of one job: an older file has other columns."""
    import datasets

    with_points = store(storage, "data/three-c.parquet", "kept", [result(6, "points")], job(**POINTS))
    table = pq.read_table(io.BytesIO(storage.read_bytes("data/two-b.parquet")))
    few = pa.StructArray.from_arrays([table["quality"].combine_chunks().field(SCORES[0])], names=[SCORES[0]])
    older = table.set_column(table.schema.get_field_index("quality"), "quality", few)
    data = table_bytes(older)
    storage.write_bytes("data/four-d.parquet", data)
    fewer = VersionFile("data/four-d.parquet", "kept", 1, len(data), sha256(data), "four")
    mixed = replace(version.with_files((*version.files[:1], fewer, with_points)), counts={**version.counts, "kept": 4})
    card.write(storage, JOB, mixed)
    found = datasets.load_dataset(storage.uri, split="train", cache_dir=str(tmp_path / "cache"))
    assert found["id"][:] == ["row-0/0", "row-1/0", "row-2/0", "row-6/0"]
    assert [row is None for row in found["points"][:]] == [True, True, True, False]
    assert found[2]["quality"][SCORES[1]] is None
    assert found[3]["quality"][SCORES[1]] is not None


def test_the_metadata_is_what_the_hub_expects(storage: Storage, version: Version) -> None:
    import datasets
    from huggingface_hub import DatasetCardData

    card.write(storage, JOB, version)
    data = DatasetCardData(**front_matter(storage))
    assert data.license == "other"
    assert data.size_categories == ["n<1K"]
    assert [config["config_name"] for config in data.configs] == ["default", "rejected", "quarantined"]
    assert data.configs[0]["data_files"][0]["path"] == ["data/one-a.parquet", "data/two-b.parquet"]
    assert {"rgb-d", "synthetic", "point-cloud"} <= set(data.tags)
    for info, outcome in zip(data.to_dict()["dataset_info"], ("kept", "rejected", "quarantined"), strict=True):
        schema = tables.read_tables(storage, version).schemas[outcome]
        assert info["features"] == datasets.Features.from_arrow_schema(schema)._to_yaml_list()
    assert data.to_dict()["dataset_info"][0]["splits"][0]["num_examples"] == 3


def test_a_licence_that_is_known_is_told(storage: Storage, version: Version) -> None:
    output = version.spec.output.model_copy(update={"license": "cc-by-4.0"})
    card.write(
        storage, JOB, replace(version, recorded_spec=version.spec.model_copy(update={"output": output}).as_given())
    )
    assert front_matter(storage)["license"] == "cc-by-4.0"
    assert "does not know the licence" not in readme(storage)


# --- as mlcroissant reads it ---


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what mlcroissant uses of rdflib and pandas
def test_croissant_is_valid_and_reads_the_versions_records(storage: Storage, version: Version) -> None:
    import mlcroissant

    card.write(storage, JOB, version)
    found = mlcroissant.Dataset(f"{storage.uri}/croissant.json")
    assert not found.metadata.ctx.issues.errors
    assert not found.metadata.ctx.issues.warnings
    assert [records.id for records in found.metadata.record_sets] == ["default", "rejected", "quarantined"]
    records = list(found.records("default"))
    assert [record["default/id"] for record in records] == [b"row-0/0", b"row-1/0", b"row-2/0"]
    assert records[1]["default/prompt"] == b"a red sphere"
    assert records[0]["default/rgb"].size == (60, 40)
    assert records[0]["default/quality"]["default/quality/depth_span"] == pytest.approx(
        result(0, "").scores["depth_span"]
    )
    (rejected,) = found.records("rejected")
    assert list(rejected["rejected/reasons"]) == [b"depth_range: too flat"]


# --- as people read it ---


def test_the_card_tells_counts_reasons_columns_and_how_it_was_made(storage: Storage, version: Version) -> None:
    card.write(storage, JOB, version)
    text = readme(storage)
    for line in ("| kept | 3 | 60.0% |", "| planned | 5 | 100.0% |", "| `depth_range` | 1 |", "task: joint", "ab" * 32):
        assert line in text
    for name in ("intrinsics_source", "depth_kind", *SCORES):
        assert f"`{name}`" in text or name in text
    assert "| 2 | row-1/0 | a red sphere |" in text
    assert re.search(r"^\| `depth in metres` \| [\d.]+ \| [\d.]+ \| [\d.]+ \| `[ ▁-█]{20}` \|$", text, re.MULTILINE)
    linked = re.findall(r"\]\(([^)h][^)]*)\)", text.split("---\n", 2)[2])
    named = {"figures/000001/samples.jpg", "figures/000001/points.ply", "stats.json"}
    assert named | {"croissant.json", "gallery/index.html"} == set(linked)
    assert all(storage.exists(path) for path in linked if not path.startswith("gallery"))


def test_the_card_tells_what_samples_are_kept_by(storage: Storage, version: Version) -> None:
    card.write(storage, JOB, version)
    assert "Nothing is rejected." in readme(storage)
    criteria = {"filters": [{"kind": "depth_range", "min_span": 0.35}], "keep_best": None}
    card.write(storage, JOB, replace(version, criteria=criteria, refilter=1))
    assert "as `jointdit refilter` of version 1 says" in readme(storage)
    assert "min_span: 0.35" in readme(storage)


def test_the_statistics_are_those_of_the_rows(storage: Storage, version: Version) -> None:
    card.write(storage, JOB, version)
    stats = json.loads(storage.read_bytes("stats.json"))
    assert stats["counts"] == {"kept": 3, "rejected": 1, "quarantined": 1}
    assert (stats["samples"], stats["files"], stats["version"]) == (5, 4, 1)
    assert stats["bytes"] == sum(each.bytes for each in version.files)
    spans = [result(number, "p").scores["depth_span"] for number in (0, 1, 2, 4)]
    assert stats["scores"]["depth_span"]["samples"] == stats["scored_samples"] == 4
    assert stats["scores"]["depth_span"]["mean"] == pytest.approx(np.mean(spans))
    assert stats["scores"]["depth_span"]["quantiles"]["0.5"] == pytest.approx(np.median(spans))
    assert sum(stats["scores"]["depth_span"]["histogram"]["counts"]) == 4
    assert stats["depth"]["pictures"] == 3
    disparities = np.concatenate([result(number, "p").disparity.ravel()[::3] for number in (0, 1, 2)])  # 800 of each
    assert stats["depth"]["disparity"]["mean"] == pytest.approx(disparities.mean(), abs=1e-3)
    assert stats["depth"]["metres"]["quantiles"]["1"] == pytest.approx(10.0, rel=1e-3)


def test_the_figures_show_the_rows(storage: Storage, version: Version) -> None:
    card.write(storage, JOB, version)
    sheet = np.asarray(Image.open(io.BytesIO(storage.read_bytes("figures/000001/samples.jpg"))).convert("RGB"))
    assert sheet.shape[1] > 3 * 128
    assert sheet[160:165, 20:110].mean() < 90  # the top of the first depth map: far, so dark
    assert sheet[235:240, 20:110].mean() > 120
    cloud = read_ply(storage.read_bytes("figures/000001/points.ply"))
    assert len(cloud) > 500
    across = np.sort(cloud.points[:, 0])
    assert (np.diff(across) > 0.03 * np.ptp(across)).sum() == 2  # three clouds beside each other


def test_a_image_that_is_not_copied_and_a_hole_are_left_out(storage: Storage, version: Version) -> None:
    (first, *_) = tables.read_tables(storage, version).rows
    holes = np.ones(first.disparity.shape, bool)
    holes[:20] = False
    row = replace(first, rgb=None, valid=holes)
    sheet = np.asarray(Image.open(io.BytesIO(figures.sample_sheet([row]))).convert("RGB"))
    assert sheet[4:130, 20:110].mean() > 230  # only a few grey words
    whole, rest = (read_ply(figures.merged_points([each], 0.5)) for each in (replace(row, valid=None), row))
    assert 0 < len(rest) < 0.6 * len(whole)
    np.testing.assert_array_equal(whole.colours[0], figures.colour_depth(first.disparity)[0, 0])
    assert np.isnan(row.metres[:20]).all()


def test_the_look_is_as_long_for_a_thousand_files(
    storage: Storage, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    thousand = tuple(replace(version.files[0], shard=str(number)) for number in range(1000))
    opened = []
    real = Storage.open

    def counted(self: Storage, name: str) -> Any:
        opened.append(name)
        return real(self, name)

    monkeypatch.setattr(Storage, "open", counted)
    monkeypatch.setattr(tables, "SCORED_TABLES", 24)
    many = replace(version.with_files(thousand), counts={"kept": 2000, "rejected": 0, "quarantined": 0})
    seen = tables.read_tables(storage, many)
    assert len(opened) <= 24 + tables.DEPTH_TABLES + tables.SHOWN_TABLES
    assert seen.scored == 2 * 24
    card.write(storage, JOB, many)
    assert "Of 48 of 2,000 samples: 24 of 1,000 files, evenly spread." in readme(storage)


def test_all_scores_are_read_until_tables_or_samples_are_too_many() -> None:
    most, samples = tables.SCORED_TABLES, tables.SCORED_SAMPLES
    assert tables.scored_tables(0, 0) == 0
    assert tables.scored_tables(1, 10**9) == 1
    assert tables.scored_tables(most, most * 200) == most
    assert tables.scored_tables(10 * most, 10 * most) == most
    assert tables.scored_tables(1000, 2 * samples) == 500
    assert list(tables.spread(range(10), 10)) == list(range(10))
    assert list(tables.spread(range(10), 4)) == [0, 2, 5, 7]


def test_whose_card_it_is(storage: Storage, version: Version) -> None:
    assert not card.is_about(storage, version)
    card.write(storage, JOB, version)
    assert card.is_about(storage, version)
    assert not card.is_about(storage, replace(version, number=2))
    for name in ("croissant.json", "stats.json", "README.md"):
        before = storage.read_bytes(name)
        storage.write_bytes(name, before.replace(b"1", b"2"))
        assert not card.is_about(storage, version)
        storage.write_bytes(name, before)


# --- what comes from outside ---


def test_a_name_cannot_break_the_card(storage: Storage, version: Version) -> None:
    name = "a: [b]\n---\n# `x` <script>"
    card.write(storage, JOB, renamed(version, name))
    assert front_matter(storage)["pretty_name"] == "a: [b] --- # `x` <script>"
    assert "\n# a: \\[b\\] --- \\# \\`x\\` \\<script\\>\n" in readme(storage)


def test_a_spec_or_a_prompt_cannot_break_out_of_its_place(storage: Storage, version: Version) -> None:
    text = "a\n````\n# heading\n---\n<script>alert(1)</script> | cell |"
    given = version.spec.input.model_copy(update={"prompt": text})
    spec = version.spec.model_copy(update={"name": text, "input": given})
    card.write(storage, JOB, replace(version, recorded_spec=spec.as_given()))
    outside, fence = [], ""
    for line in readme(storage).split("\n---\n", 1)[1].splitlines():
        # Up to three spaces before a fence count: what YAML indents by two could close it.
        found = re.match(" {0,3}(`{3,})", line)
        if fence:
            fence = "" if found and len(found[1]) >= len(fence) and not line.strip("` ") else fence
        elif found:
            fence = found[1]
        else:
            outside.append(line)
    assert not fence
    assert not [line for line in outside if re.match(r"\s*#+ heading", line) or re.search(r"(?<!\\)<script", line)]
    (row,) = [line for line in outside if line.startswith("| 1 |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    assert not re.search(r"(?<!\\)[`\[\]!]|(?<!\\)://|www\.", row)


def test_terms_and_addresses_of_weights_cannot_break_the_card(storage: Storage, version: Version) -> None:
    text = "a | b ![x](http://h/p) `c`"
    source = {"value": f"hub/{text}", "terms": {"license": text, "link": text}}
    card.write(storage, replace(JOB, sources={"model.base": source}), version)
    (row,) = [line for line in readme(storage).splitlines() if line.startswith("| `model.base` |")]
    bare = re.sub(r"\\.", "", row.removeprefix("| `model.base`"))  # a backslash takes what follows out of Markdown
    assert bare.count("|") == 3
    assert not re.search(r"[`\[\]!]|://", bare)


def test_a_version_that_kept_nothing_has_a_card(storage: Storage, version: Version) -> None:
    card.write(storage, JOB, replace(version.with_files(()), counts=dict.fromkeys(version.counts, 0), reasons={}))
    assert "No sample was kept" in readme(storage)
    assert "dataset_info: []" in readme(storage)
