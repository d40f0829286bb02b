"""Rendered scenes are what the captions and the depth claim."""

from __future__ import annotations

import numpy as np
import pytest

from jointdit.scenes import COLOURS, Scene, render_scene, sample_layout


def world_points(scene: Scene) -> np.ndarray:
    """(H, W, 3) points in the world frame, from the scene's own depth and intrinsics."""
    height, width = scene.depth.shape
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    camera = np.stack([(u - scene.cx) / scene.fx, (v - scene.cy) / scene.fy, np.ones_like(u)], axis=-1)
    points = camera * scene.depth[..., None] @ scene.layout.camera.rotation().T
    return points + np.array([0, scene.layout.camera.height, 0])


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, 96, 64) for seed in range(24)]


def test_the_same_seed_gives_the_same_scene(scenes: list[Scene]) -> None:
    again = render_scene(3, 96, 64)
    np.testing.assert_array_equal(again.rgb, scenes[3].rgb)
    np.testing.assert_array_equal(again.depth, scenes[3].depth)
    assert again.caption == scenes[3].caption
    assert sample_layout(3) != sample_layout(4)


def test_depth_puts_the_floor_at_height_zero_and_walls_on_their_planes(scenes: list[Scene]) -> None:
    for scene in scenes:
        points = world_points(scene)
        floor = points[scene.label == 0]
        assert np.abs(floor[:, 1]).max() < 1e-3 * scene.depth.max()
        wall = points[scene.label == 1]
        back = wall[:, 2] + np.tan(scene.layout.wall_turn) * wall[:, 0] - scene.layout.wall_z
        sides = [wall[:, 0] - x for x in (scene.layout.left_wall_x, scene.layout.right_wall_x) if x is not None]
        distance = np.min(np.abs([back, *sides]), axis=0)
        assert distance.max() < 1e-2, scene.seed


def test_depth_puts_spheres_on_their_surface(scenes: list[Scene]) -> None:
    seen = 0
    for scene in scenes:
        points = world_points(scene)
        for number, thing in enumerate(scene.objects):
            here = points[scene.label == 2 + number]
            if thing.shape != "sphere" or len(here) < 20:
                continue
            seen += 1
            radius = np.linalg.norm(here - [thing.x, thing.half_extent, thing.z], axis=1)
            np.testing.assert_allclose(radius, thing.half_extent, rtol=5e-3)
    assert seen >= 3


def test_the_caption_names_every_colour_and_only_those(scenes: list[Scene]) -> None:
    for scene in scenes:
        named = {word.strip(",") for word in scene.caption.split()} & set(COLOURS)
        assert named == {scene.floor_colour, scene.wall_colour, *(thing.colour for thing in scene.objects)}


def test_objects_stand_in_the_column_that_the_caption_tells(scenes: list[Scene]) -> None:
    borders = {"left": (0, 0.42), "middle": (0.36, 0.64), "right": (0.58, 1)}
    checked = 0
    for scene in scenes:
        if len(scene.objects) > 1:
            continue  # one may hide another, which moves the centre of what is seen
        (thing,) = scene.objects
        columns = np.nonzero(scene.label == 2)[1]
        low, high = borders[thing.column]
        assert low * 96 <= np.median(columns) <= high * 96, scene.seed
        checked += 1
    assert checked >= 5


def test_the_picture_shows_the_named_colours(scenes: list[Scene]) -> None:
    for scene in scenes:
        floor = np.median(scene.rgb[scene.label == 0], axis=0)
        expected = np.array(COLOURS[scene.floor_colour], float)
        shade = floor @ expected / (expected @ expected)
        assert 0.4 < shade <= 1.01
        assert np.abs(floor - shade * expected).max() < 12
