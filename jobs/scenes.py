"""Write rendered scenes to a folder: images, exact depth and captions, as input for every task.

    rgb/000000.png         the image
    disparity/000000.png   relative disparity, 16 bit, 65535 nearest
    depth/000000.npy       float32 (H, W), metres along the camera's z axis
    metadata.jsonl         one line per scene: id, seed, caption, files, size, intrinsics in pixels, objects

As inputs of a job: metadata.jsonl holds prompts (`columns: {prompt: caption}`), rgb/ images, the others depth maps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jointdit.errors import InputError
from jointdit.geometry.depth import disparity_from_depth, encode_depth_png
from jointdit.scenes import Scene, render_scene


def write_scenes(folder: Path, count: int, first_seed: int, width: int = 128, height: int = 128) -> Iterator[int]:
    """Render scenes `first_seed` to `first_seed + count - 1` into a folder; yield the number written so far.

    Raises:
        InputError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: give a new one, so that files of two sets do not mix.")
    for name in ("rgb", "disparity", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for position, seed in enumerate(range(first_seed, first_seed + count)):
            line = _write_scene(folder, f"{position:06d}", render_scene(seed, width, height))
            metadata.write(json.dumps(line) + "\n")
            yield position + 1


def _write_scene(folder: Path, name: str, scene: Scene) -> dict[str, Any]:
    files = {"rgb": f"rgb/{name}.png", "disparity": f"disparity/{name}.png", "depth": f"depth/{name}.npy"}
    Image.fromarray(scene.rgb).save(folder / files["rgb"])
    (folder / files["disparity"]).write_bytes(encode_depth_png(disparity_from_depth(scene.depth)))
    np.save(folder / files["depth"], scene.depth)
    height, width = scene.depth.shape
    return {
        "id": name,
        "seed": scene.seed,
        "caption": scene.caption,
        **files,
        "width": width,
        "height": height,
        **{"fx": scene.fx, "fy": scene.fy, "cx": scene.cx, "cy": scene.cy},
        "z_near": float(scene.depth.min()),
        "z_far": float(scene.depth.max()),
        "floor": scene.floor_colour,
        "wall": scene.wall_colour,
        "objects": [
            {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "place": thing.column}
            for thing in scene.objects
        ],
    }
