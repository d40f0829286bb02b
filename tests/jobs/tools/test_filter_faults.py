"""Each filter finds the fault it is made for in small scenes with exact depth, and lets clean ones pass."""

import re

import numpy as np
import pytest
from PIL import Image

from jobs.tools.filtering.faults import FAULTS, HANDS, pair_of
from jobs.tools.filtering.recall import DEFAULTS, THRESHOLDS, Samples, measure_scenes, measured, rejected_share
from jobs.tools.filtering.tables import alarm_table, recall_table, threshold_table, write_between_markers
from jobs.tools.measure_filters import measure_filters
from jointdit.errors import InputError
from jointdit.scenes import render_scene
from pipelines.quality import PIXEL_FILTERS

SCENES = 24


@pytest.fixture(scope="module")
def samples() -> Samples:
    found: Samples = {}
    for _ in measure_scenes(77, SCENES, 96, found):
        pass
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_found_by_its_filter(samples, fault):
    assert rejected_share(samples[fault.name], [fault.kind]) >= 0.9


@pytest.mark.parametrize("kind", PIXEL_FILTERS)
def test_clean_scenes_pass(samples, kind):
    assert rejected_share(samples["as rendered"], [kind]) <= 1 / SCENES
    assert rejected_share(samples["JPEG, quality 60"], [kind]) <= 2 / SCENES


def test_all_filters_together_let_clean_scenes_pass(samples):
    assert rejected_share(samples["as rendered"]) <= 2 / SCENES


def test_each_filter_has_its_fault_and_each_default_its_place_in_the_table():
    assert {fault.kind for fault in FAULTS} == set(PIXEL_FILTERS)
    for threshold in THRESHOLDS:
        assert threshold.score in PIXEL_FILTERS[threshold.kind].scores
        assert DEFAULTS[threshold.kind].model_fields_set == set()
        assert np.isfinite(threshold.default)


def test_scores_hardly_depend_on_the_size_of_the_image():
    small, large = (measured(pair_of(render_scene(77, size, size))).scores for size in (96, 192))
    for name in small:
        if name != "depth_distinct_fraction":  # counts values; a larger map has more of them
            assert large[name] == pytest.approx(small[name], abs=0.1), name


def test_the_tables_name_every_fault_filter_and_threshold(samples):
    recall, alarms, places = recall_table(samples), alarm_table(samples), threshold_table(samples)
    assert [line.split(" | ")[0].strip("| ") for line in recall.splitlines()[2:]] == [fault.name for fault in FAULTS]
    assert alarms.count("\n") == len(PIXEL_FILTERS) + 3
    assert all(hand in alarms for hand in HANDS)
    for threshold in THRESHOLDS:
        assert f"| {threshold.kind}.{threshold.field} | {threshold.score} | {threshold.fault} |" in places


def test_text_between_markers_is_replaced_and_the_rest_stays(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    write_between_markers(file, "new\n")
    assert file.read_text() == "before\n<!-- measured: begin -->\n\nnew\n\n<!-- measured: end -->\nafter\n"
    file.write_text("no markers")
    with pytest.raises(InputError, match=re.escape(f"{file} has no lines <!-- measured: begin -->")):
        write_between_markers(file, "new")


@pytest.mark.slow
def test_the_command_writes_tables_and_image_and_rates_of_a_checkpoint(tmp_path):
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
