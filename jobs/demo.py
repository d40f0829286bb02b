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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from jobs.recolour import recolour
from jobs.report import console, counted, log_progress, say, show_progress, show_validation
from jobs.scenes import write_scenes
from jointdit.depth import decode_depth_png
from jointdit.errors import JointDiTError
from jointdit.evaluation.baselines import constant_disparity, mean_training_disparity
from jointdit.evaluation.colours import check_colours
from jointdit.evaluation.scenes import DepthScore, held_out_scenes, score_depth
from jointdit.training.data import HELD_OUT_SEED
from pipelines.cluster import connect
from pipelines.publish import read_latest
from pipelines.readers.pictures import decode_picture
from pipelines.run import RunSummary, run_job
from pipelines.spec import JobSpec, load_spec
from pipelines.storage import Storage
from pipelines.validate import validate

OUTPUT = Path("demo-output")
SCENES = 24
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Finished:
    """One of the three jobs after it ran, with what its pictures or depth maps are worth."""

    spec: JobSpec
    summary: RunSummary
    is_whole: bool
    worth: str


def main() -> int:
    """Run the demo in ./demo-output; returns the exit code."""
    started = time.monotonic()
    log_progress()
    for name in ("scenes", "joint", "depth", "depth-to-image"):
        shutil.rmtree(OUTPUT / name, ignore_errors=True)
    render(OUTPUT / "scenes")
    with connect():
        finished = [run(spec) for spec in specs()]
    show(finished, time.monotonic() - started)
    return 0 if all(job.is_whole for job in finished) else 1


def render(folder: Path) -> None:
    """The scenes, and their captions in other colours beside them."""
    show_progress(write_scenes(folder, SCENES, HELD_OUT_SEED), SCENES, f"scenes in {folder}")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    recoloured = [row | {"caption": recolour(row["caption"])} for row in map(json.loads, lines)]
    (folder / "recoloured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recoloured))


def specs() -> list[JobSpec]:
    """The three jobs: demo.yaml, and what differs from it. Depth has no generated depth to be consistent with."""
    joint = [f"input.uri={FOLDER / 'demo_prompts.txt'}"]
    depth = [
        *("task=depth", "name=demo-depth", f"output.uri={OUTPUT / 'depth'}", "model.steps=8"),
        *(f"input.uri={OUTPUT / 'scenes' / 'metadata.jsonl'}", "input.columns={id: id, image: rgb}"),
        *("quality.filters=[{kind: depth_range}, {kind: near_duplicate}]", "quality.regenerate=0"),
    ]
    depth_to_image = [
        *("task=depth-to-image", "name=demo-depth-to-image", f"output.uri={OUTPUT / 'depth-to-image'}"),
        f"input.uri={OUTPUT / 'scenes' / 'recoloured.jsonl'}",
        *("input.columns={id: id, depth: depth, prompt: caption}", "input.depth={kind: metric}"),
    ]
    return [load_spec(FOLDER / "demo.yaml", overrides) for overrides in (joint, depth, depth_to_image)]


def run(spec: JobSpec) -> Finished:
    """Run a job, recount it, and look at what it made."""
    say(f"{spec.task}: running")
    summary = run_job(spec)
    is_whole = show_validation(validate(spec.output.uri))
    rows = read_kept(spec.output.uri)
    return Finished(spec, summary, is_whole, judge_depth(rows) if spec.task == "depth" else judge_pictures(rows))


def read_kept(uri: str) -> list[dict[str, Any]]:
    """Source, prompt, rgb and depth of the kept samples of the latest version, sorted by source."""
    storage = Storage(uri)
    version = read_latest(storage)
    assert version is not None, "the job has just published one"
    rows: list[dict[str, Any]] = []
    for path in version.files_of("kept"):
        with storage.open(path) as file:
            rows += pq.read_table(file, columns=["source", "prompt", "rgb", "depth"]).to_pylist()
    return sorted(rows, key=lambda row: str(row["source"]))


def judge_depth(rows: Sequence[dict[str, Any]]) -> str:
    """Depth against the exact depth, beside two baselines that see no picture."""
    scenes = {f"{number:06d}": scene for number, scene in enumerate(held_out_scenes(SCENES))}
    shown = [scenes[row["source"]] for row in rows]
    height, width = shown[0].depth.shape
    model = score_depth([decode_depth_png(row["depth"]["bytes"]) for row in rows], shown)
    mean = score_depth([mean_training_disparity(height, width)] * len(shown), shown)
    constant = score_depth([constant_disparity(height, width)] * len(shown), shown)

    def told(score: DepthScore) -> str:
        return f"AbsRel {score.abs_rel:.3f}, delta1 {score.delta1:.3f}"

    return f"{told(model)}\nmean training disparity: {told(mean)}\nconstant: {told(constant)}"


def judge_pictures(rows: Sequence[dict[str, Any]]) -> str:
    """How many of the colours that the prompts name are in the pictures."""
    pictures = [decode_picture(row["rgb"]["bytes"])[0] for row in rows]
    prompts = [str(row["prompt"]) for row in rows]
    found, chance = check_colours(pictures, prompts), check_colours(pictures, [*prompts[1:], prompts[0]])
    return f"{found.found:.0%} of the colours named in the prompts\n{chance.found:.0%} with the prompts swapped"


def show(finished: Sequence[Finished], seconds: float) -> None:
    """The table, and where to look."""
    table = Table(title=f"Demo: three jobs in {seconds:.0f} s", show_lines=True)
    for heading in ("job", "samples", "seconds", "what it is worth"):
        table.add_column(heading)
    for job in finished:
        summary = job.summary
        assert summary.version is not None, "the demo has no limits"
        table.add_row(job.spec.task, counted(summary.version.counts), f"{summary.seconds:.0f}", job.worth)
    console.print(table)
    for job in finished:
        say(f"{job.spec.task}: {job.summary.output}/gallery/index.html")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JointDiTError as error:
        sys.exit(f"Error: {error}")
