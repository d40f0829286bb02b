"""run, plan, status and validate on a small job through Ray, from the command line; and the parts of the demo."""

import json
import os
from pathlib import Path

import pytest
import yaml

from jobs import demo
from jobs.cli import main
from jobs.recolour import recolour
from jobs.report import show_profile
from jointdit.scenes import COLOURS, sample_layout
from jointdit.scenes.caption import describe
from jointdit.scenes.colours import named_colours
from pipelines.engine.cluster import _share
from pipelines.engine.usage import WORKERS
from pipelines.spec.quantiles import Calibration
from pipelines.stages.readers import count_rows, list_files
from pipelines.store.storage import Storage
from tests.local_job import job_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset(ray_cluster, tmp_path_factory):
    """A finished job of six prompts, one of them empty, in two shards; (spec file, output)."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "prompts.txt").write_text("".join(f"a red cube {number}\n" for number in range(5)) + "\n")
    spec = {
        "task": "joint",
        "model": {"steps": 1, "height": 32, "width": 32},
        "input": {"uri": str(folder / "prompts.txt")},
        "output": {"uri": str(folder / "out"), "shard_rows": 3, "points": "ply"},
        "quality": {"max_quarantined_fraction": 0.5},
        "resources": {"workers": 1},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    assert main(["run", str(folder / "spec.yaml"), "--profile"]) == 0
    return folder / "spec.yaml", folder / "out"


def test_run_again_finds_nothing_to_do(dataset, capsys):
    spec, output = dataset
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert main(["run", str(spec)]) == 0
    printed = capsys.readouterr().out
    assert "2 shards of an earlier run kept" in printed
    assert "version 1 is the latest: 5 kept, 0 rejected, 1 quarantined" in printed
    assert f"{output}/gallery/index.html" in printed
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_profile_says_where_the_time_went(dataset, capsys):
    _, output = dataset
    (path,) = (output / "_reports").glob("*.json")
    report = json.loads(path.read_text())
    profile = report["profile"]
    assert all(profile[name] > 0 for name in ("start", "text", "denoise", "decode", "read", "finish", "write"))
    (cpus,) = {3600 * report["cpu_hours"] / sum(profile[name] for name in WORKERS)}
    assert cpus == pytest.approx(_share([float(os.cpu_count())], 1), rel=0.02), "the steps add up to the time held"
    show_profile(profile)
    printed = capsys.readouterr().out
    assert all(name in printed for name in profile)
    assert "time in denoise" in path.with_suffix(".md").read_text()


def test_plan_shows_what_is_done_and_what_a_longer_input_adds(dataset, tmp_path, capsys):
    spec, _ = dataset
    assert main(["plan", str(spec)]) == 0
    assert "to do 0 shards, 0 samples; 0 shards of 0 rows not planned before" in " ".join(
        capsys.readouterr().out.split()
    )
    (tmp_path / "more.txt").write_text("a green cube\na blue cube\n")
    inputs = f"input.uri=[{spec.parent / 'prompts.txt'}, {tmp_path / 'more.txt'}]"
    assert main(["plan", str(spec), "--set", inputs]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "done 2 shards, 6 samples" in printed
    assert "to do 1 shard, 2 samples; 1 shard of 2 rows not planned before" in printed


def test_status_shows_the_ledger(dataset, capsys):
    _, output = dataset
    assert main(["status", str(output)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "shards 2 of 2 committed" in printed
    assert "samples 6 of 6 (100%): 5 kept, 0 rejected, 1 quarantined" in printed


def test_validate_lists_what_is_damaged(dataset, capsys):
    _, output = dataset
    assert main(["validate", str(output)]) == 0
    assert "is whole: version 1" in capsys.readouterr().out
    table = min((output / "data").glob("*.parquet"))
    data = table.read_bytes()
    try:
        table.write_bytes(data[:-1] + b"?")
        assert main(["validate", str(output)]) == 1
    finally:
        table.write_bytes(data)
    printed = capsys.readouterr().out
    assert f"data/{table.name} has another SHA-256 than its commit says." in printed
    assert "is damaged: 2 problems in " in printed  # its ids cannot be read either


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """The demo's scenes, with a calibration that was written without a model."""
    folder = tmp_path_factory.mktemp("demo")
    demo.render(folder / demo.OUTPUT / "scenes")
    scores = {"self_consistency_correlation": [0.1, 0.2, 0.3, 0.4, 0.5]}
    Calibration(5, 0, scores, {}, "").write(Storage(str(folder / demo.OUTPUT / "joint-calibration")))
    return folder


def test_the_demo_has_three_jobs_of_24_samples_and_a_few_unfit_rows(monkeypatch, demo_folder):
    monkeypatch.chdir(demo_folder)
    specs = demo.specs()
    assert [spec.task for spec in specs] == ["joint", "depth", "depth-to-image"]
    assert len({spec.output.uri for spec in specs}) == 3
    counts = [[count_rows(file, spec.input) for file in list_files(spec.input, spec.reading)] for spec in specs]
    assert counts == [[demo.SCENES, 2], [demo.SCENES + 4], [demo.SCENES]]
    for spec, rows in zip(specs, map(sum, counts), strict=True):
        assert spec.quality.max_quarantined_fraction * rows >= 1
    assert {each["kind"]: each for each in specs[0].quality.filters}["self_consistency"]["min_correlation"] == 0.2
    prompts = (ROOT / "jobs" / "demo_prompts.txt").read_text().splitlines()
    assert len(prompts) == len(set(prompts)) == demo.SCENES
    assert all(named_colours(prompt) for prompt in prompts)


def test_the_demo_rejects_its_unfit_rows_for_the_right_reasons(monkeypatch, tmp_path, demo_folder):
    """The depth job of the demo: its rows, filters and messages, with a stand-in model."""
    monkeypatch.chdir(demo_folder)
    spec = demo.specs()[1].as_given()
    job = job_in(tmp_path, **{name: spec[name] for name in ("task", "input", "quality")}, output={"points": {}})
    version = job.complete()
    lost = demo.tell_lost(job.context.storage, version)
    assert [line.split(" ", 3)[:3] for line in lost[:3]] == [
        ["rejected", "by", "near_duplicate:"],
        ["rejected", "by", "blank_picture:"],
        ["rejected", "by", "noisy_picture:"],
    ], lost
    assert "copy/0" in lost[0]
    assert "blank/0" in lost[1]
    assert "noise/0" in lost[2]
    assert "quarantined: corpus.jsonl:27: " in lost[3]


def test_the_demo_gives_the_scenes_other_prompts(demo_folder):
    scenes = demo_folder / demo.OUTPUT / "scenes"
    lines = (scenes / "metadata.jsonl").read_text().splitlines()
    recoloured = (scenes / "recoloured.jsonl").read_text().splitlines()
    assert len(lines) == len(recoloured) == demo.SCENES
    for one, other in zip(map(json.loads, lines), map(json.loads, recoloured), strict=True):
        assert (one["id"], one["depth"]) == (other["id"], other["depth"])
        assert one["caption"] != other["caption"]


@pytest.mark.parametrize("seed", range(20))
def test_recoloured_captions_name_other_colours_for_the_same_things(seed):
    caption = describe(sample_layout(seed), seed)
    other = recolour(caption)
    names = list(COLOURS)
    expected = [(part, names[(names.index(colour) + 1) % len(names)]) for part, colour in named_colours(caption)]
    assert named_colours(other) == expected
    assert len(other.split()) == len(caption.split())
    assert " a orange" not in f" {other}"
    assert " an red" not in f" {other}"
