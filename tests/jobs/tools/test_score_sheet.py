"""A sheet shows one rejected sample per fault, with the reason."""

import numpy as np
import pytest
from PIL import Image

from jobs.tools.scoring.model_faults import DEPTH_FAULTS
from jobs.tools.scoring.sheet import CELL, GAP, depth_images, examples, save_examples
from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes import render_scene
from pipelines.quality.self_consistency import SelfConsistency


@pytest.fixture(scope="module")
def shown():
    scenes = [render_scene(seed, 64, 64) for seed in range(5)]
    exact = [disparity_from_depth(scene.depth) for scene in scenes]
    rule = SelfConsistency()

    def inspect(pairs):  # the estimator has no error, so the scores depend on the faults only
        scores = rule.compare(exact, [pair.disparity for pair in pairs])
        return [(values, (pair.rgb, *depth_images(pair.disparity))) for values, pair in zip(scores, pairs, strict=True)]

    return scenes, examples(rule, inspect, DEPTH_FAULTS, scenes), examples(rule, inspect, [], scenes, with_caption=True)


def test_a_clean_sample_and_each_rejected_fault_are_shown_once(shown):
    scenes, rejects, captioned = shown
    titles = [example.title for example in rejects]
    assert titles[:3] == ["clean", "swapped depth", "inverted depth"]
    assert len(titles) == len(set(titles))
    assert "blurred depth" not in titles, "blurred maps still correlate, so none is rejected"
    assert rejects[0].text == "self_consistency keeps it"
    assert all("what the model sees in its image" in example.text for example in rejects[1:])
    np.testing.assert_array_equal(rejects[0].images[0], scenes[0].rgb)
    assert captioned[0].text.endswith(f"Caption: {scenes[0].caption}")


def test_the_sheet_holds_all_columns_and_their_text(shown, tmp_path):
    _, rejects, captioned = shown
    with Image.open(save_examples(tmp_path / "a.png", [rejects, captioned])) as sheet:
        assert sheet.width == len(rejects) * (CELL + GAP) + GAP
        assert sheet.height > 2 * 2 * CELL
        below = np.asarray(sheet.convert("L"))[-2:]
    assert (below == 255).all(), "no text is cut off"


def test_depth_colours_do_not_depend_on_the_range():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    plain, wide, hole, flat = depth_images(ramp, 100 * ramp - 7, np.where(ramp > 0.9, np.nan, ramp), 0 * ramp)
    np.testing.assert_array_equal(plain, wide)
    assert plain[0, 0].tolist() != plain[-1, -1].tolist()
    assert hole[-1, -1].tolist() == hole[0, 0].tolist(), "pixels that are not finite are the farthest"
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
