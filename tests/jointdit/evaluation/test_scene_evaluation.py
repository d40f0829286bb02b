"""Evaluation on held-out scenes, with estimators whose scores are known beforehand."""

import math

import numpy as np
import pytest

from jointdit.evaluation.baselines import constant_disparity, mean_training_disparity
from jointdit.evaluation.images import opponent_r2, psnr
from jointdit.evaluation.scenes import evaluate_vae, held_out_scenes, score_depth
from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes.sampling import HELD_OUT_SEED

SIZE = 64


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(12, SIZE, SIZE)


def test_scenes_are_held_out_and_skipping_goes_on_where_the_last_ended(scenes):
    assert scenes[0].seed >= HELD_OUT_SEED
    assert held_out_scenes(1, SIZE, SIZE, skip=11)[0].caption == scenes[11].caption


def test_the_exact_disparity_scores_zero_and_only_with_its_own_image(scenes):
    exact = [disparity_from_depth(scene.depth) for scene in scenes]
    score = score_depth(exact, scenes)
    assert score.abs_rel < 1e-4
    assert score.delta1 == score.within_5_percent == 1.0
    assert score_depth([*exact[1:], exact[0]], scenes).abs_rel > 0.05


def test_the_mean_disparity_beats_the_constant_and_objects_are_harder_than_the_rest(scenes):
    mean = score_depth([mean_training_disparity(SIZE, SIZE, range(24))] * len(scenes), scenes)
    constant = score_depth([constant_disparity(SIZE, SIZE)] * len(scenes), scenes)
    assert mean.abs_rel < 0.7 * constant.abs_rel
    assert mean.object_abs_rel > mean.abs_rel


def test_psnr_of_a_known_error():
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black, black + 16) == pytest.approx(20 * math.log10(255 / 16))
    assert psnr(black, black) == math.inf


def test_a_vae_that_loses_one_axis_is_caught_though_its_psnr_is_fair(scenes):
    rgb_images = np.stack([scene.rgb for scene in scenes])

    def without_red_green(batch):
        mean = batch[..., :2].mean(axis=-1, keepdims=True)
        return np.concatenate([mean, mean, batch[..., 2:]], axis=-1).astype(np.uint8)

    report = evaluate_vae(without_red_green, rgb_images)
    assert report.opponent_r2["yellow_blue"] > 0.99
    assert report.opponent_r2["red_green"] < 0.3
    assert report.colours_kept["red"] == 0.0
    faithful = evaluate_vae(lambda batch: batch, rgb_images)
    assert faithful.psnr_db == math.inf
    assert min(opponent_r2(rgb_images, rgb_images).values()) == 1.0
    assert set(faithful.colours_kept.values()) == {1.0}
