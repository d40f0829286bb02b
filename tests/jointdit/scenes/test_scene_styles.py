"""Toon and pixel art: another image of the same scene, from its exact buffers."""

import numpy as np
import pytest

from jointdit.evaluation.scenes import held_out_scenes
from jointdit.scenes.colours import check_colours
from jointdit.scenes.styles import INK, STYLES, TOON_BANDS, art_palette, edges, pixel_art, toon


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(6, 128, 128)


@pytest.mark.parametrize("style", STYLES)
def test_only_the_image_changes_and_it_changes_much(scenes, style):
    for scene in scenes:
        before = scene.rgb.copy()
        drawn = STYLES[style](scene)
        np.testing.assert_array_equal(scene.rgb, before)
        assert drawn.depth is scene.depth
        assert (drawn.caption, drawn.fx, drawn.layout) == (scene.caption, scene.fx, scene.layout)
        assert drawn.rgb.shape == scene.rgb.shape
        assert drawn.rgb.dtype == np.uint8
        assert np.abs(drawn.rgb.astype(int) - scene.rgb).mean() > 2
        np.testing.assert_array_equal(STYLES[style](scene).rgb, drawn.rgb)


def test_toon_has_few_colours_a_surface_and_ink_where_surfaces_meet(scenes):
    for scene in scenes:
        drawn = toon(scene).rgb
        inked = (drawn == INK).all(axis=-1)
        for label in np.unique(scene.label):
            colours = np.unique(drawn[(scene.label == label) & ~inked], axis=0)
            assert 1 <= len(colours) <= len(TOON_BANDS)
        changes = scene.label[:, :-1] != scene.label[:, 1:]
        assert inked[:, :-1][changes].all()
        assert 0.005 < inked.mean() < 0.12
        np.testing.assert_array_equal(inked, edges(scene))


def test_edges_are_corners_of_rooms_and_cubes_and_no_grazing_floor(scenes):
    for scene in scenes:
        inside = (scene.label[1:-1, 1:-1] == 0) & (scene.label[2:, 1:-1] == 0) & (scene.label[1:-1, 2:] == 0)
        assert not edges(scene)[1:-1, 1:-1][inside].any()
    corner = next(scene for scene in scenes if scene.layout.right_wall_x is not None)
    wall = corner.label <= 1
    assert (edges(corner) & wall & (corner.label == 1)).any()


def test_pixel_art_is_cells_of_the_palette(scenes):
    palette = {tuple(colour) for colour in art_palette().tolist()}
    for scene in scenes:
        drawn = pixel_art(scene).rgb
        cells = drawn.reshape(32, 4, 32, 4, 3)
        assert (cells == cells[:, :1, :, :1]).all()
        assert {tuple(colour) for colour in drawn.reshape(-1, 3).tolist()} <= palette


def test_pixel_art_of_a_size_that_cells_do_not_divide():
    (scene,) = held_out_scenes(1, 70, 66)
    assert pixel_art(scene).rgb.shape == (66, 70, 3)


@pytest.mark.parametrize("style", STYLES)
def test_the_caption_still_fits_the_image(scenes, style):
    report = check_colours([STYLES[style](scene).rgb for scene in scenes], [scene.caption for scene in scenes])
    assert report.found > 0.8
