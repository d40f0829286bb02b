"""Render a scene by ray casting: a shaded image and its exact depth.

Camera frame: x right, y down, z forward, in metres. The centre of pixel (u, v) is at (u + 0.5, v + 0.5); cx = width / 2
and cy = height / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.open3d_import import import_open3d
from jointdit.scenes.caption import describe
from jointdit.scenes.layout import Layout, SceneObject
from jointdit.scenes.meshes import smooth_normals, unit_mesh
from jointdit.scenes.sampling import sample_layout
from jointdit.scenes.textures import object_texture, surface_texture
from jointdit.scenes.vocabulary import COLOURS

AMBIENT = {"hard": 0.55, "soft": 0.72}  # brightness in shadow, by the kind of light
SHINE, SHINE_POWER = 70.0, 60  # highlight of shiny objects, of 255, and its exponent
SUPERSAMPLING = 2  # rays per pixel and axis for colour; depth uses one ray through the pixel's centre
FAR = 40.0  # metres: half the size of the floor and walls

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    rgb: uint8 (H, W, 3). depth: float32 (H, W), metres along the camera's z axis. label: uint8 (H, W), 0 floor, 1 wall,
    2 + i for objects[i]. Intrinsics in pixels.
    """

    seed: int
    caption: str
    rgb: NDArray[np.uint8]
    depth: FloatArray
    label: NDArray[np.uint8]
    fx: float
    fy: float
    cx: float
    cy: float
    layout: Layout

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        return self.layout.objects

    @property
    def floor_colour(self) -> str:
        return self.layout.floor.colour

    @property
    def wall_colour(self) -> str:
        return self.layout.wall.colour

    @property
    def object_mask(self) -> NDArray[np.bool_]:
        """Mask (H, W), True on objects."""
        return self.label >= 2


def render_scene(seed: int, width: int = 128, height: int = 128, threads: int = 1) -> Scene:
    """Render the scene of a seed.

    Args:
        seed: any non-negative integer; it determines scene, image and caption.
        width, height: pixels.
        threads: of the ray caster; 0 uses all cores.
    """
    return render_layout(sample_layout(seed), seed, width, height, threads)


def render_layout(layout: Layout, seed: int, width: int = 128, height: int = 128, threads: int = 1) -> Scene:
    """Render a given layout; `seed` only determines the wording of the caption."""
    open3d = import_open3d()
    caster = open3d.t.geometry.RaycastingScene(nthreads=threads)
    shadow_caster = open3d.t.geometry.RaycastingScene(
        nthreads=threads
    )  # only objects cast shadows, because walls would darken whole rooms
    for i, (vertices, triangles) in enumerate(_geometry(layout)):
        caster.add_triangles(open3d.core.Tensor(vertices), open3d.core.Tensor(triangles))
        if i >= _first_object(layout):
            shadow_caster.add_triangles(open3d.core.Tensor(vertices), open3d.core.Tensor(triangles))

    focal = 0.5 * height / np.tan(layout.camera.fov / 2)
    centre_rays = _camera_rays(layout, focal, width, height, 1)
    hit = caster.cast_rays(open3d.core.Tensor(centre_rays), nthreads=threads)
    forward = layout.camera.rotation()[:, 2].astype(np.float32)
    depth = hit["t_hit"].numpy() * (centre_rays[:, 3:] @ forward)
    label = _labels(layout)[hit["geometry_ids"].numpy()]

    colour_rays = _camera_rays(layout, focal, width, height, SUPERSAMPLING)
    hit = caster.cast_rays(open3d.core.Tensor(colour_rays), nthreads=threads)
    points = colour_rays[:, :3] + colour_rays[:, 3:] * hit["t_hit"].numpy()[:, None]
    geometry = hit["geometry_ids"].numpy().astype(np.int64)
    normals = _normals(layout, geometry, points, hit["primitive_normals"].numpy(), colour_rays[:, 3:])
    light = np.asarray(layout.light, np.float32)
    shadow_rays = np.concatenate([points + 2e-3 * normals, np.broadcast_to(light, points.shape)], axis=1)
    lit = ~shadow_caster.test_occlusions(
        open3d.core.Tensor(np.ascontiguousarray(shadow_rays)), nthreads=threads
    ).numpy()
    local = _local_points(layout, geometry, points)
    lambert = np.clip(normals @ light, 0, 1) * lit
    ambient = AMBIENT[layout.light_kind]
    shade = ambient + (1 - ambient) * lambert
    if layout.outdoors:
        shade = np.where(geometry == 1, 1.0, shade)  # the sky is not shaded
    colour = _albedo(layout, geometry, points, local) * shade[:, None]
    colour += _highlights(layout, geometry, normals, colour_rays[:, 3:], light, lit)[:, None]
    s = SUPERSAMPLING
    image = colour.reshape(height, s, width, s, 3).mean(axis=(1, 3))
    return Scene(
        seed=seed,
        caption=describe(layout, seed),
        rgb=np.clip(np.round(image), 0, 255).astype(np.uint8),
        depth=depth.reshape(height, width).astype(np.float32),
        label=label.reshape(height, width),
        fx=float(focal),
        fy=float(focal),
        cx=width / 2,
        cy=height / 2,
        layout=layout,
    )


def _camera_rays(layout: Layout, focal: float, width: int, height: int, supersampling: int) -> FloatArray:
    """Return rays (N, 6), origins and unit directions, row-major over the supersampled image."""
    u = (np.arange(width * supersampling) + 0.5) / supersampling - width / 2
    v = (np.arange(height * supersampling) + 0.5) / supersampling - height / 2
    x, y = np.meshgrid(u / focal, v / focal)
    directions = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3) @ layout.camera.rotation().T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rays = np.empty((len(directions), 6), np.float32)
    rays[:, :3] = (0.0, layout.camera.height, 0.0)
    rays[:, 3:] = directions
    return rays


def _geometry(layout: Layout) -> list[tuple[FloatArray, NDArray[np.uint32]]]:
    """Return meshes in the order of geometry ids: floor, walls (back, and left and right if any), objects."""
    quad = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)

    def sheet(corners: list[tuple[float, float, float]]) -> tuple[FloatArray, NDArray[np.uint32]]:
        return np.array(corners, np.float32), quad

    slope = np.tan(layout.wall_turn)
    left_z, right_z = layout.wall_z + FAR * slope, layout.wall_z - FAR * slope
    meshes = [
        sheet([(-FAR, 0, -FAR), (FAR, 0, -FAR), (FAR, 0, FAR), (-FAR, 0, FAR)]),
        sheet([(-FAR, -1, left_z), (FAR, -1, right_z), (FAR, FAR, right_z), (-FAR, FAR, left_z)]),
    ]
    for x in _side_walls(layout):
        meshes.append(sheet([(x, -1, -FAR), (x, -1, FAR), (x, FAR, FAR), (x, FAR, -FAR)]))
    for thing in layout.objects:
        vertices, triangles = unit_mesh(thing.shape)
        placed = vertices @ _turn(thing).T * thing.half_extent + np.array([thing.x, thing.y, thing.z])
        meshes.append((placed.astype(np.float32), triangles))
    return meshes


def _turn(thing: SceneObject) -> NDArray[np.float64]:
    """Return the (3, 3) rotation about y from the unit mesh to the world."""
    c, s = np.cos(thing.turn), np.sin(thing.turn)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _side_walls(layout: Layout) -> list[float]:
    return [x for x in (layout.left_wall_x, layout.right_wall_x) if x is not None]


def _first_object(layout: Layout) -> int:
    """Return the geometry id of the first object, after floor, back wall and side walls."""
    return 2 + len(_side_walls(layout))


def _labels(layout: Layout) -> NDArray[np.uint8]:
    return np.array([0] + [1] * (_first_object(layout) - 1) + [2 + i for i in range(len(layout.objects))], np.uint8)


def _local_points(layout: Layout, geometry: NDArray[np.int64], points: FloatArray) -> FloatArray:
    """Convert points (N, 3) on objects to the frame of their unit mesh; zero elsewhere."""
    local = np.zeros_like(points)
    for i, thing in enumerate(layout.objects):
        here = geometry == _first_object(layout) + i
        centre = np.array([thing.x, thing.y, thing.z], np.float32)
        local[here] = (points[here] - centre) @ _turn(thing).astype(np.float32) / np.float32(thing.half_extent)
    return local


def _normals(
    layout: Layout, geometry: NDArray[np.int64], points: FloatArray, facets: FloatArray, directions: FloatArray
) -> FloatArray:
    """Return unit normals (N, 3) towards the camera, smooth ones on round sides."""
    normals, local = facets.copy(), _local_points(layout, geometry, points)
    for i, thing in enumerate(layout.objects):
        here = geometry == _first_object(layout) + i
        turn = _turn(thing).astype(np.float32)
        normals[here] = smooth_normals(thing.shape, local[here], facets[here] @ turn) @ turn.T
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    away = np.sum(normals * directions, axis=1) > 0
    normals[away] *= -1
    return normals


def _albedo(layout: Layout, geometry: NDArray[np.int64], points: FloatArray, local: FloatArray) -> FloatArray:
    """Return colours (N, 3) in 0..255 before shading."""
    surfaces = [layout.floor.colour] + [layout.wall.colour] * (_first_object(layout) - 1)
    palette = np.array([COLOURS[name] for name in surfaces + [o.colour for o in layout.objects]], np.float32)
    colour = palette[geometry]
    for surface, here in ((layout.floor, geometry == 0), (layout.wall, (geometry >= 1) & (geometry < len(surfaces)))):
        x, y, z = points[here].T
        position = np.stack([x, z] if surface is layout.floor else [x + z, y], axis=1)
        colour[here] *= surface_texture(surface.texture, surface.period, position)[:, None]
    for i, thing in enumerate(layout.objects):
        here = geometry == len(surfaces) + i
        colour[here] *= object_texture(thing.texture, local[here])[:, None]
    return colour


def _highlights(
    layout: Layout,
    geometry: NDArray[np.int64],
    normals: FloatArray,
    directions: FloatArray,
    light: FloatArray,
    lit: NDArray[np.bool_],
) -> FloatArray:
    """Return the highlights (N,) of shiny objects (Blinn-Phong), in 0..255, which are added to each channel."""
    shiny = [_first_object(layout) + i for i, thing in enumerate(layout.objects) if thing.material == "shiny"]
    half = light - directions
    half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-9
    facing = np.clip(np.sum(normals * half, axis=1), 0, 1)
    return np.where(np.isin(geometry, shiny) & lit, SHINE * facing**SHINE_POWER, 0).astype(np.float32)
