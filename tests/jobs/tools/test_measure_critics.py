"""Small critics are fitted for two steps, saved, loaded by the filters and measured."""

import numpy as np
import pytest
from PIL import Image

from jobs.tools.filtering.faults import pair_of
from jobs.tools.measure_critics import measure_critics
from jobs.tools.scoring.model_faults import CAPTION_FAULTS, DEPTH_FAULTS, IMAGE_FAULTS, planted
from jointdit.scenes import COLOURS, render_scene
from pipelines.quality import FILTERS


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, 64, 64) for seed in range(2)]


@pytest.mark.slow
def test_the_command_writes_a_table_for_each_filter_with_all_faults(tmp_path):
    readme = tmp_path / "README.md"
    measure_critics(count=4, text_fitted=32, text_steps=2, depth_fitted=32, depth_steps=2, readme=readme)
    text = readme.read_text()
    for part in ("text", "depth"):
        assert f"jobs.tools.measure_critics -n 4 --{part}-fitted 32 --{part}-steps 2 --only {part}`" in text
        with Image.open(tmp_path / f"{part}_critic.png") as sheet:
            assert sheet.width > 100
    for kind, faults in (
        ("text_agreement", CAPTION_FAULTS),
        ("depth_critic", DEPTH_FAULTS),
        ("metric_fit", DEPTH_FAULTS),
    ):
        table = text.split(f"| {kind} |")[1].split("Calibrated: ")[0]
        assert "| *clean, as rendered* | 4 |" in table
        assert all(f"| {fault.name} | 4 |" in table for fault in faults)
        assert any(f", {score} |" in table for score in FILTERS[kind].scores)


def test_caption_faults_change_colours_only(scenes):
    other, all_colours, one = (dict(planted(CAPTION_FAULTS, scenes))[fault.name] for fault in CAPTION_FAULTS[:3])
    assert [pair.caption for pair in other] == [scenes[1].caption, scenes[0].caption]
    for scene, every, single in zip(scenes, all_colours, one, strict=True):
        before, after = scene.caption.split(), every.caption.split()
        assert all((a != b) == (a.strip(",") in COLOURS) for a, b in zip(before, after, strict=True))
        assert sum(a != b for a, b in zip(before, single.caption.split(), strict=True)) == 1


def test_image_faults_change_the_image_only(scenes):
    for _, pairs in planted(IMAGE_FAULTS, scenes):
        for scene, pair in zip(scenes, pairs, strict=True):
            assert pair.rgb.shape == scene.rgb.shape
            assert (pair.rgb != scene.rgb).any()
            np.testing.assert_array_equal(pair.disparity, pair_of(scene).disparity)
    tiles = dict(planted(IMAGE_FAULTS, scenes))["tiles in disorder"][0].rgb
    np.testing.assert_array_equal(np.sort(tiles.reshape(-1)), np.sort(scenes[0].rgb.reshape(-1)))
