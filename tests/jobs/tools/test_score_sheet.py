"""A sheet shows of each fault one that the filter rejects, with its reason."""

import numpy as np
import pytest
from PIL import Image

from jobs.tools.scoring.sheet import CELL, GAP, depth_images, examples, save_examples
from jobs.tools.scoring.spoilt import DEPTH_FAULTS
from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes import render_scene
from pipelines.quality.self_consistency import SelfConsistency


@pytest.fixture(scope="module")
def shown():
    scenes = [render_scene(seed, 64, 64) for seed in range(5)]
    exact = [disparity_from_depth(scene.depth) for scene in scenes]
    rule = SelfConsistency()

    def seen(pairs):  # an estimator without error: the scores are those of the faults alone
        scores = rule.compare(exact, [pair.disparity for pair in pairs])
        return [(each, (pair.rgb, *depth_images(pair.disparity))) for each, pair in zip(scores, pairs, strict=True)]

    return scenes, examples(rule, seen, DEPTH_FAULTS, scenes), examples(rule, seen, [], scenes, with_caption=True)


def test_each_fault_that_is_rejected_is_shown_once_with_its_reason_after_a_clean_sample(shown):
    scenes, found, captioned = shown
    titles = [each.title for each in found]
    assert titles[:3] == ["clean", "swapped depth", "inverted depth"]
    assert len(titles) == len(set(titles))
    assert "blurred depth" not in titles, "details that are blurred still correlate: none of these scenes is rejected"
    assert found[0].text == "self_consistency keeps it"
    assert all("what the model sees in its image" in each.text for each in found[1:])
    np.testing.assert_array_equal(found[0].images[0], scenes[0].rgb)
    assert captioned[0].text.endswith(f"Caption: {scenes[0].caption}")


def test_the_sheet_holds_all_columns_and_the_whole_of_their_text(shown, tmp_path):
    _, found, captioned = shown
    with Image.open(save_examples(tmp_path / "a.png", [found, captioned])) as sheet:
        assert sheet.width == len(found) * (CELL + GAP) + GAP
        assert sheet.height > 2 * 2 * CELL
        below = np.asarray(sheet.convert("L"))[-2:]
    assert (below == 255).all(), "nothing is cut off"


def test_a_map_is_shown_from_its_nearest_to_its_farthest_pixel_whatever_its_range():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    plain, wide, hole, flat = depth_images(ramp, 100 * ramp - 7, np.where(ramp > 0.9, np.nan, ramp), 0 * ramp)
    np.testing.assert_array_equal(plain, wide)
    assert plain[0, 0].tolist() != plain[-1, -1].tolist()
    assert hole[-1, -1].tolist() == hole[0, 0].tolist(), "what is not finite is farthest"
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
