"""Spectra, points, agreement of image and depth, prompts with two objects: each with an answer known beforehand."""

import numpy as np
import pytest

from jointdit.errors import InputError
from jointdit.evaluation.agreement import assumed_depth, depth_agreement, typical_range
from jointdit.evaluation.lifting import planes_of, score_lifting
from jointdit.evaluation.scenes import held_out_scenes
from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes import COLOURS, FLAT_SHAPES
from jointdit.scenes.colours import check_two_objects, names_two_objects


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(6, 96, 96)


# --- points ---------------------------------------------------------------------------------------------------------


def test_planes_are_floor_walls_and_faces_and_cover_them(scenes):
    for scene in scenes:
        masks = list(planes_of(scene))
        total = np.sum(masks, axis=0)
        assert total.max() == 1
        flat = scene.label <= 1
        assert (total[flat] == 1).mean() > 0.97
        round_things = [2 + i for i, thing in enumerate(scene.objects) if thing.shape not in FLAT_SHAPES]
        assert not total[np.isin(scene.label, round_things)].any()


def test_exact_depth_lifts_to_flat_planes_on_the_surface(scenes):
    exact = score_lifting([scene.depth for scene in scenes], scenes, "depth")
    assert exact.planes >= 2 * len(scenes)
    assert exact.flatness < 0.05
    assert exact.bend < 0.05
    assert exact.tilt < 0.1
    assert exact.surface_error < 0.02


def test_a_bent_wall_shows_as_bend_and_noise_as_roughness(scenes):
    rows, columns = np.mgrid[-1:1:96j, -1:1:96j]
    bowl = [scene.depth * (1 + 0.1 * (rows**2 + columns**2)) for scene in scenes]
    rng = np.random.default_rng(0)
    rough = [scene.depth * (1 + 0.02 * rng.standard_normal(scene.depth.shape)) for scene in scenes]
    bent, noisy = score_lifting(bowl, scenes, "depth"), score_lifting(rough, scenes, "depth")
    assert bent.bend > 0.8 * bent.flatness
    assert bent.flatness > 0.5
    assert noisy.bend < 0.4 * noisy.flatness
    assert noisy.flatness == pytest.approx(2.0, rel=0.5)  # % of the distance, along the ray
    assert min(bent.surface_error, noisy.surface_error) > 0.3


def test_a_tilted_scene_is_flat_and_far_from_the_surface(scenes):
    rows = np.mgrid[-1:1:96j, 0:96][0]
    # 1 / z linear in the row is what a plane has: adding such a term turns every plane into another plane.
    tilted = [(1 / scene.depth + 0.02 * rows).astype(np.float32) for scene in scenes]
    found = score_lifting(tilted, scenes)
    assert found.flatness < 0.05
    assert found.tilt > 2
    assert found.surface_error > 0.5


# --- agreement ------------------------------------------------------------------------------------------------------


def test_images_that_show_their_depth_agree_and_shuffled_ones_do_not(scenes):
    images = [scene.rgb for scene in scenes]
    known = {image.tobytes(): disparity_from_depth(scene.depth) for image, scene in zip(images, scenes, strict=True)}
    found = depth_agreement(lambda batch: [known[p.tobytes()] for p in batch], images, [s.depth for s in scenes])
    assert found.abs_rel < 1e-4
    assert found.delta1 == 1.0
    assert found.shuffled_abs_rel > 0.05
    assert found.error_ratio < 1e-2
    assert found.samples == 6


def test_an_estimator_that_does_not_look_agrees_as_well_with_shuffled_pairs(scenes):
    flat = np.linspace(1, 0.1, 96, dtype=np.float32)[:, None].repeat(96, axis=1)
    images = [scene.rgb for scene in scenes]
    found = depth_agreement(lambda batch: [flat] * len(batch), images, [s.depth for s in scenes])
    assert found.error_ratio == 1.0
    with pytest.raises(InputError, match="at least two pairs"):
        depth_agreement(lambda batch: [flat], images[:1], [scenes[0].depth])


def test_generated_disparity_is_read_in_the_scenes_range(scenes):
    near, far = typical_range(scenes)
    assert near == pytest.approx(np.median([scene.depth.min() for scene in scenes]))
    (depth,) = assumed_depth([np.array([[0.0, 0.5, 1.0]], np.float32)], (near, far))
    assert depth[0] == pytest.approx([far, 2 / (1 / near + 1 / far), near], rel=1e-5)


# --- two objects ----------------------------------------------------------------------------------------------------


def image_of(*colours):
    """Floor below, wall above, and squares of the other colours."""
    wall, floor, *things = colours
    image = np.empty((64, 64, 3), np.uint8)
    image[:32], image[32:] = COLOURS[wall], COLOURS[floor]
    for place, colour in enumerate(things):
        image[24:40, 8 + 24 * place : 24 + 24 * place] = COLOURS[colour]
    return image


def test_two_object_prompts_are_picked_and_both_colours_are_wanted():
    two = "a red cube on the left and a small blue sphere, on a gray floor in front of a white wall"
    one = "a red cube, on a gray floor in front of a white wall"
    three = "a red cube, a green cone and a blue sphere, on a gray floor in front of a white wall"
    assert [names_two_objects(prompt) for prompt in (two, one, three)] == [True, False, False]

    both, half = image_of("white", "gray", "red", "blue"), image_of("white", "gray", "red", "green")
    report = check_two_objects([both, half, both], [two, two, one])
    assert (report.prompts, report.colours, report.both) == (2, 0.75, 0.5)
    assert np.isnan(check_two_objects([both], [one]).both)
