"""`make demo`: scenes, then three small jobs through the whole engine, then what came of it.

    scenes           24 held-out scenes with exact depth           demo-output/scenes
    joint            24 prompts -> pictures with depth             demo-output/joint
    depth            the scenes' pictures -> their depth           demo-output/depth
    depth-to-image   the scenes' depth, other prompts -> pictures  demo-output/depth-to-image

A run starts clean: it removes what the last one left in these four folders.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.recolour import recolour
from jobs.report import show_progress
from jobs.scenes import write_scenes
from jointdit.training.data import HELD_OUT_SEED
from pipelines.spec import JobSpec, load_spec

OUTPUT = Path("demo-output")
JOBS = Path(__file__).parent
SCENES = 24


@dataclass(frozen=True)
class DemoJob:
    """One of the three jobs, after it ran."""

    task: str
    uri: str
    samples: int
    kept: int
    seconds: float
    problems: int  # that `validate` found
    figures: tuple[str, ...]


def main() -> int:
    """Run the demo in ./demo-output; returns the exit code."""
    started = time.monotonic()
    for name in ("scenes", "joint", "depth", "depth-to-image"):
        shutil.rmtree(OUTPUT / name, ignore_errors=True)
    scenes = OUTPUT / "scenes"
    show_progress(write_scenes(scenes, SCENES, HELD_OUT_SEED), SCENES, f"scenes in {scenes}")
    rows = [json.loads(line) for line in (scenes / "metadata.jsonl").read_text().splitlines()]
    recoloured = [row | {"caption": recolour(row["caption"])} for row in rows]
    (scenes / "recoloured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recoloured))
    return 0


def specs() -> list[JobSpec]:
    """The three jobs: demo.yaml, and what differs from it."""
    joint = [f"input.uri={JOBS / 'demo_prompts.txt'}"]
    depth = [
        *("task=depth", "name=demo-depth", f"output.uri={OUTPUT / 'depth'}", "model.steps=8"),
        *(f"input.uri={OUTPUT / 'scenes' / 'metadata.jsonl'}", "input.columns={id: id, image: rgb}"),
    ]
    depth_to_image = [
        *("task=depth-to-image", "name=demo-depth-to-image", f"output.uri={OUTPUT / 'depth-to-image'}"),
        f"input.uri={OUTPUT / 'scenes' / 'recoloured.jsonl'}",
        "input.columns={id: id, depth: depth, prompt: caption}",
        "input.depth={kind: metric}",
    ]
    return [load_spec(JOBS / "demo.yaml", overrides) for overrides in (joint, depth, depth_to_image)]


if __name__ == "__main__":
    sys.exit(main())
