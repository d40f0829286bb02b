"""Rendered scenes are what the captions and the depth claim."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from jointdit.scenes import COLOURS, SHAPES, Mention, Scene, SceneObject, render_layout, render_scene, sample_layout
from jointdit.scenes.caption import LONGEST, describe
from jointdit.scenes.meshes import UNIT_TOPS
from jointdit.scenes.sampling import MOST_HIDDEN, all_in_view
from jointdit.scenes.vocabulary import RELATIONS


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
            radius = np.linalg.norm(here - [thing.x, thing.y, thing.z], axis=1)
            np.testing.assert_allclose(radius, thing.half_extent, rtol=5e-3)
    assert seen >= 3


def test_every_thing_is_seen(scenes: list[Scene]) -> None:
    for scene in scenes:
        for number in range(len(scene.objects)):
            assert (scene.label == 2 + number).any(), (scene.seed, scene.caption)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stands_on_the_floor_inside_its_cube(shape: str) -> None:
    layout = sample_layout(0)
    camera = replace(layout.camera, height=1.2, pitch=0.3, yaw=0.0, fov=1.0)
    thing = SceneObject(shape, "red", "large", "middle", 0.5, 0.0, 2.5, 0.4)
    scene = render_layout(replace(layout, camera=camera, objects=(thing,), mentions=(Mention((0,)),)), 0)
    here = world_points(scene)[scene.label == 2]
    assert len(here) > 300
    local = (here - [thing.x, thing.y, thing.z]) / thing.half_extent
    assert -1.001 <= local[:, 1].min() < -0.8, "it stands on the floor"
    assert np.abs(local[:, 1]).max() <= 1.001
    reach = np.sqrt(2) * 0.86 if shape in ("cube", "pyramid") else 1.1
    assert 0.5 < np.hypot(local[:, 0], local[:, 2]).max() <= reach


def test_scenes_are_of_every_kind() -> None:
    layouts = [sample_layout(seed) for seed in range(400)]
    assert 0.18 < np.mean([layout.outdoors for layout in layouts]) < 0.32
    assert {thing.shape for layout in layouts for thing in layout.objects} == set(SHAPES)
    heights = [layout.camera.height for layout in layouts]
    assert min(heights) < 0.5
    assert max(heights) > 2.5
    told = [mention for layout in layouts for mention in layout.mentions]
    assert {mention.relation for mention in told} == {None, *RELATIONS}
    assert {len(mention.objects) for mention in told} == {1, 2, 3}
    assert max(len(layout.objects) for layout in layouts) >= 4


def test_what_a_caption_tells_of_two_things_is_so() -> None:
    """On top: nothing between them. Before and behind: nearer and farther. Left and right: as the camera sees it."""
    seen = set()
    for seed in range(400):
        layout = sample_layout(seed)
        relation = layout.mentions[0].relation
        if relation is None:
            continue
        one, other = layout.objects[0], layout.objects[1]
        (u, _, depth), (other_u, _, other_depth) = (layout.camera.project(o.x, o.y, o.z) for o in (one, other))
        if relation == "on top of":
            assert (one.x, one.z) == (other.x, other.z)
            assert one.base == pytest.approx(other.y + other.half_extent * UNIT_TOPS[other.shape])
        elif relation in ("behind", "in front of"):
            assert (depth > other_depth) == (relation == "behind"), seed
        elif relation != "next to":
            assert (u < other_u) == (relation == "to the left of"), seed
        seen.add(relation)
    assert seen == set(RELATIONS)


def test_things_are_in_view_and_captions_short_enough() -> None:
    layouts = {seed: sample_layout(seed) for seed in range(300)}
    assert all(all_in_view(layout.camera, layout.objects) for layout in layouts.values()), MOST_HIDDEN
    words = [len(re.findall(r"\w+|,", describe(layout, seed))) for seed, layout in layouts.items()]
    assert max(words) <= LONGEST


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


def test_the_image_shows_the_named_colours(scenes: list[Scene]) -> None:
    for scene in scenes:
        floor = np.median(scene.rgb[scene.label == 0], axis=0)
        expected = np.array(COLOURS[scene.floor_colour], float)
        shade = floor @ expected / (expected @ expected)
        assert 0.4 < shade <= 1.01
        assert np.abs(floor - shade * expected).max() < 12
