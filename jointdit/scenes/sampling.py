"""Sample a scene from a seed.

Scenes are rooms or open ground with one or several objects, seen by low or high cameras. Captions are true of the
image: objects are in view, in their column, and not hidden by others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jointdit.scenes.layout import Camera, Layout, Mention, SceneObject, Surface
from jointdit.scenes.meshes import UNIT_TOPS
from jointdit.scenes.vocabulary import (
    COLOURS,
    COLUMNS,
    FLOOR_TEXTURES,
    LIGHTS,
    MATERIALS,
    OBJECT_TEXTURES,
    SHAPES,
    SIZES,
    SKY_TEXTURES,
    WALL_TEXTURES,
)

STREAM = 20250500482
HELD_OUT_SEED = 1_000_000_000  # training uses lower seeds, evaluation and the demo seeds from here on
OUTDOORS = 0.25  # share of scenes on open ground
CAMERA_HEIGHTS = ((0.3, 0.7), (0.7, 1.8), (1.8, 3.4))  # metres
KINDS = {
    "single": 0.15,
    "pair": 0.3,
    "trio": 0.17,
    "related": 0.2,
    "group": 0.18,
}  # arrangement of objects -> share of scenes
PLACEMENTS = 40  # attempts to place objects so that all are in view
MOST_HIDDEN = 0.5  # share of an object's width and height that a nearer object may hide
MARGIN = 0.06  # share of the image between an object's centre and the border
STACKABLE = ("cube", "cylinder")

Placed = tuple[tuple[SceneObject, ...], tuple[Mention, ...]]


def sample_layout(seed: int) -> Layout:
    """Sample a scene. The same seed gives the same scene on every machine (NumPy's PCG64 stream)."""
    rng = np.random.default_rng([STREAM, seed])
    outdoors = bool(rng.random() < OUTDOORS)
    wall_z = rng.uniform(9.0, 14.0) if outdoors else rng.uniform(3.6, 7.5)
    camera = _camera(rng, wall_z)
    floor_colour, wall_colour = (str(name) for name in rng.choice(list(COLOURS), size=2, replace=False))
    floor = Surface(floor_colour, str(rng.choice(FLOOR_TEXTURES)), rng.uniform(0.5, 1.0))
    wall = Surface(wall_colour, str(rng.choice(SKY_TEXTURES if outdoors else WALL_TEXTURES)), rng.uniform(0.4, 0.8))
    objects, mentions = _things(rng, camera, wall_z, {floor_colour, wall_colour}, outdoors)
    azimuth, elevation = rng.uniform(-1.3, 1.3) + np.pi, rng.uniform(0.6, 1.3)
    light = (
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
        float(np.cos(azimuth) * np.cos(elevation)),
    )
    turn = 0.0 if outdoors else rng.uniform(-0.25, 0.25)
    # Walls do not intersect objects.
    behind = max(thing.z + np.tan(turn) * thing.x + 1.5 * thing.half_extent for thing in objects)
    left = min(-rng.uniform(1.5, 3.2), min(o.x - 1.5 * o.half_extent for o in objects)) if rng.random() < 0.35 else None
    right = max(rng.uniform(1.5, 3.2), max(o.x + 1.5 * o.half_extent for o in objects)) if rng.random() < 0.35 else None
    return Layout(
        camera,
        floor,
        wall,
        float(max(wall_z, behind + 0.2)),
        float(turn),
        None if outdoors else left,
        None if outdoors else right,
        objects,
        light,
        mentions,
        outdoors,
        str(rng.choice(LIGHTS, p=[0.7, 0.3])),
    )


def _camera(rng: np.random.Generator, wall_z: float) -> Camera:
    """Sample a camera: low ones look straight, high ones down, and all see parts of floor and wall."""
    height = rng.uniform(*CAMERA_HEIGHTS[int(rng.choice(3, p=[0.25, 0.45, 0.3]))])
    yaw, fov = rng.uniform(-0.3, 0.3), np.deg2rad(rng.uniform(42.0, 70.0))
    pitch = np.arctan2(height - 0.45, rng.uniform(2.6, 4.5))
    foot = np.arctan2(height, wall_z)  # angle between the horizon and the end of the floor
    pitch = np.clip(pitch, foot - 0.3 * fov, foot + 0.3 * fov)
    return Camera(float(height), float(yaw), float(pitch), float(fov))


def _things(rng: np.random.Generator, camera: Camera, wall_z: float, taken_colours: set[str], outdoors: bool) -> Placed:
    """Sample objects until all are in view; returns the last attempt if none succeeds."""
    farthest = 4.6 if outdoors else min(3.8, wall_z - 1.2)
    free = [name for name in COLOURS if name not in taken_colours]
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    for attempt in range(2 * PLACEMENTS):
        # Fewer objects if they may not fit into this camera's view.
        drawn = kind if attempt < PLACEMENTS else str(rng.choice(["single", "pair"]))
        placed = _draw(rng, drawn, camera, farthest, [str(name) for name in rng.permutation(free)])
        if all_in_view(camera, placed[0]):
            break
    return placed


def _draw(rng: np.random.Generator, kind: str, camera: Camera, farthest: float, colours: list[str]) -> Placed:
    if kind == "related":
        return _related(rng, camera, farthest, colours)
    if kind == "group":
        return _group(rng, camera, farthest, colours)
    count = {"single": 1, "pair": 2, "trio": 3}[kind]
    columns = sorted(rng.choice(list(COLUMNS), size=count, replace=False), key=list(COLUMNS).index)
    objects = [_thing(rng, camera, str(c), rng.uniform(1.7, farthest), colours.pop()) for c in columns]
    return tuple(objects), tuple(Mention((i,)) for i in range(count))


def _related(rng: np.random.Generator, camera: Camera, farthest: float, colours: list[str]) -> Placed:
    """Sample two objects with a relation (next to, in front of, behind, on top of), sometimes with a third object."""
    column = str(rng.choice(list(COLUMNS)))
    relation = str(rng.choice(["on top of", "depth", "side"], p=[0.35, 0.35, 0.3]))
    if relation == "on top of":
        lower = _thing(
            rng, camera, column, rng.uniform(1.9, farthest), colours.pop(), str(rng.choice(["medium", "large"]))
        )
        lower = replace(lower, shape=str(rng.choice(STACKABLE)))
        upper = _thing(rng, camera, column, 2.0, colours.pop(), "small")
        top = lower.half_extent * (1 + UNIT_TOPS[lower.shape])
        objects = [replace(upper, x=lower.x, z=lower.z, base=top), lower]
    elif relation == "depth":
        near = _thing(rng, camera, column, rng.uniform(1.5, max(farthest - 0.9, 1.8)), colours.pop(), "small")
        distance = np.hypot(near.x, near.z) + rng.uniform(0.8, 1.3)
        far = _thing(rng, camera, column, distance, colours.pop(), str(rng.choice(["medium", "large"])))
        relation = str(rng.choice(["behind", "in front of"]))
        objects = [far, near] if relation == "behind" else [near, far]
    else:
        left, right = [("left", "middle"), ("middle", "right"), ("left", "right")][int(rng.integers(3))]
        distance = rng.uniform(1.8, farthest)
        objects = [
            _thing(rng, camera, place, distance + rng.uniform(-0.15, 0.15), colours.pop()) for place in (left, right)
        ]
        relation = "to the left of"
        if rng.random() < 0.5:
            objects, relation = objects[::-1], "to the right of"
        if {left, right} != {"left", "right"} and rng.random() < 0.3:
            relation = "next to"
    mentions = [Mention((0,), relation), Mention((1,))]
    free = [name for name in COLUMNS if name not in {thing.column for thing in objects}]
    if free and rng.random() < 0.3:
        objects.append(_thing(rng, camera, str(rng.choice(free)), rng.uniform(1.7, farthest), colours.pop()))
        mentions.append(Mention((2,)))
    return tuple(objects), tuple(mentions)


def _group(rng: np.random.Generator, camera: Camera, farthest: float, colours: list[str]) -> Placed:
    """Sample two or three equal objects side by side, often with one or two others."""
    count = int(rng.choice([2, 3]))
    first = _thing(
        rng, camera, "middle", rng.uniform(2.2, farthest), colours.pop(), str(rng.choice(["small", "medium"]))
    )
    right = camera.rotation()[:, 0]
    step = first.half_extent * rng.uniform(2.3, 2.8)
    row = []
    for number in range(count):
        offset = (number - (count - 1) / 2) * step
        x, z = first.x + right[0] * offset, first.z + right[2] * offset + rng.uniform(-0.2, 0.2)
        row.append(replace(first, x=float(x), z=float(z), turn=rng.uniform(0, np.pi / 2)))
    mentions = [Mention(tuple(range(count)))]
    for number in range(int(rng.choice([0, 1, 2], p=[0.3, 0.45, 0.25]))):
        row.append(_thing(rng, camera, str(rng.choice(list(COLUMNS))), rng.uniform(1.7, farthest), colours.pop()))
        mentions.append(Mention((count + number,)))
    return tuple(row), tuple(mentions)


def _thing(
    rng: np.random.Generator, camera: Camera, column: str, distance: float, colour: str, size: str | None = None
) -> SceneObject:
    """Sample an object at a distance along the floor, with its centre in the image column."""
    size = size or str(rng.choice(list(SIZES)))
    half_extent = rng.uniform(*SIZES[size])
    depth = distance * np.cos(camera.pitch) + (camera.height - half_extent) * np.sin(camera.pitch)
    across = (rng.uniform(*COLUMNS[column]) - 0.5) * 2.0 * np.tan(camera.fov / 2) * depth
    return SceneObject(
        shape=str(rng.choice(SHAPES)),
        colour=colour,
        size=size,
        column=column,
        half_extent=float(half_extent),
        x=float(across * np.cos(camera.yaw) + distance * np.sin(camera.yaw)),
        z=float(distance * np.cos(camera.yaw) - across * np.sin(camera.yaw)),
        turn=float(rng.uniform(0, np.pi / 2)),
        texture=str(rng.choice(OBJECT_TEXTURES, p=[0.55, 0.15, 0.15, 0.15])),
        material=str(rng.choice(MATERIALS, p=[0.75, 0.25])),
    )


def all_in_view(camera: Camera, objects: tuple[SceneObject, ...]) -> bool:
    """Whether all centres are in the image, no object is largely hidden, and no objects overlap."""
    boxes = []
    for thing in objects:
        u, v, depth = camera.project(thing.x, thing.y, thing.z)
        reach = thing.half_extent / (2 * np.tan(camera.fov / 2) * max(depth, 1e-6))
        if depth < 0.9 or not MARGIN < v < 1 - MARGIN or not MARGIN < u < 1 - MARGIN:
            return False
        boxes.append((u, v, reach, depth))
    for one in range(len(objects)):
        for other in range(one + 1, len(objects)):
            a, b = objects[one], objects[other]
            gap = np.hypot(a.x - b.x, a.z - b.z)
            if a.base == b.base and gap < 1.05 * (a.half_extent + b.half_extent):
                return False
            (u, v, reach, _), nearer = sorted((boxes[one], boxes[other]), key=lambda box: -box[3])
            hidden = [
                (min(c + reach, d + nearer[2]) - max(c - reach, d - nearer[2])) / (2 * reach)
                for c, d in ((u, nearer[0]), (v, nearer[1]))
            ]
            if a.base == b.base and min(hidden) > MOST_HIDDEN:
                return False
    return True
