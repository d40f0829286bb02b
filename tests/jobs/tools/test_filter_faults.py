"""Each filter rejects its faults in small scenes with exact depth, and passes clean ones."""

import re

import numpy as np
import pytest
from PIL import Image

from jobs.tools.filtering.faults import FAULTS, STYLES, pair_of
from jobs.tools.filtering.recall import DEFAULTS, THRESHOLDS, Samples, measure_scenes, measured, rejected_share
from jobs.tools.filtering.tables import alarm_table, recall_table, threshold_table
from jobs.tools.measure_filters import measure_filters
from jointdit.scenes import render_scene
from pipelines.quality import PIXEL_FILTERS

SCENES = 24


@pytest.fixture(scope="module")
def samples() -> Samples:
    measured: Samples = {}
    for _ in measure_scenes(77, SCENES, 96, measured):
        pass
    return measured


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_filter_rejects_its_fault(samples, fault):
    assert rejected_share(samples[fault.name], [fault.kind]) >= 0.9


@pytest.mark.parametrize("kind", PIXEL_FILTERS)
def test_a_filter_passes_clean_scenes(samples, kind):
    assert rejected_share(samples["as rendered"], [kind]) <= 1 / SCENES
    assert rejected_share(samples["JPEG, quality 60"], [kind]) <= 2 / SCENES


def test_all_filters_together_pass_clean_scenes(samples):
    assert rejected_share(samples["as rendered"]) <= 2 / SCENES


def test_each_filter_has_a_fault_and_each_threshold_a_score():
    assert {fault.kind for fault in FAULTS} == set(PIXEL_FILTERS)
    for threshold in THRESHOLDS:
        assert threshold.score in PIXEL_FILTERS[threshold.kind].scores
        assert DEFAULTS[threshold.kind].model_fields_set == set()
        assert np.isfinite(threshold.default)


def test_scores_hardly_depend_on_the_size_of_the_image():
    small, large = (measured(pair_of(render_scene(77, size, size))).scores for size in (96, 192))
    for name in small:
        if name != "depth_distinct_fraction":  # a larger map has more distinct values
            assert large[name] == pytest.approx(small[name], abs=0.1), name


def test_the_tables_name_every_fault_filter_and_threshold(samples):
    recall, alarms, places = recall_table(samples), alarm_table(samples), threshold_table(samples)
    assert [line.split(" | ")[0].strip("| ") for line in recall.splitlines()[2:]] == [fault.name for fault in FAULTS]
    assert alarms.count("\n") == len(PIXEL_FILTERS) + 3
    assert all(style in alarms for style in STYLES)
    for threshold in THRESHOLDS:
        assert f"| {threshold.kind}.{threshold.field} | {threshold.score} | {threshold.fault} |" in places


@pytest.mark.slow
def test_the_command_writes_tables_and_image_with_a_checkpoint(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- measured: begin -->\n<!-- measured: end -->\n")
    measure_filters(count=4, size=32, model="tiny", made=8, steps=1, readme=readme)
    text = readme.read_text()
    assert (
        "python -m jobs.tools.measure_filters -n 4 --size 32 --model tiny --made 8 --steps 1`. Of 4 scenes, 2 give"
        in text
    )
    assert re.search(
        r"^\| swapped depth \| the maps of other scenes.*ROC AUC [01]\.\d+ by self_consistency_", text, re.M
    )
    assert "| pixel art | 8 of the checkpoint |" in text
    with Image.open(tmp_path / "rejects.png") as sheet:
        assert sheet.width > sheet.height / 2 > 100
