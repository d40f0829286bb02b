"""`make demo`: scenes, then three small jobs through the whole engine, then a table of the results.

    scenes           24 held-out scenes with exact depth           demo-output/scenes
    calibration      16 of the joint samples, for a threshold      demo-output/joint-calibration
    joint            26 prompts -> images with depth             demo-output/joint
    depth            28 images -> their depth                    demo-output/depth
    depth-to-image   the scenes' depth, other prompts -> images  demo-output/depth-to-image

As in any corpus a few rows are unfit: a prompt is empty and one asks for a watermark; of the images one is a copy, one
blank, one noise, one truncated. The worst quarter of the joint samples, by self-consistency, gets another seed.

A run first removes these five folders.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.table import Table

from jobs.recolour import recolour
from jobs.report import console, counted, log_progress, say, several, show_progress, show_validation
from jobs.scenes import write_scenes
from jointdit.errors import JointDiTError
from jointdit.evaluation.baselines import constant_disparity, mean_training_disparity
from jointdit.evaluation.scenes import DepthScore, held_out_scenes, score_depth
from jointdit.geometry.depth import decode_depth_png
from jointdit.scenes.colours import check_colours
from jointdit.scenes.sampling import HELD_OUT_SEED
from pipelines.dataset.validation.validate import validate
from pipelines.engine.cluster import connect
from pipelines.ledger.entries import Outcome
from pipelines.ledger.versions import Version, read_latest, read_outcomes
from pipelines.run.calibrate import calibrate, load_to_calibrate
from pipelines.run.job import RunSummary, run_job
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.readers.images import decode_image
from pipelines.store.storage import Storage

OUTPUT = Path("demo-output")
SCENES = 24
CALIBRATED = 16  # samples, two batches; the quartile of 8 was far from that of all
COPIED = 3  # the scene whose image is in the corpus a second time
SPEC = "demo.yaml"
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Finished:
    """A finished job, with scores of its images or depth maps, and lines on what was not kept."""

    spec: JobSpec
    summary: RunSummary
    is_whole: bool
    scores: str
    lost: list[str]


def main() -> int:
    """Run the demo in ./demo-output; returns the exit code."""
    started = time.monotonic()
    log_progress()
    for name in ("scenes", "joint-calibration", "joint", "depth", "depth-to-image"):
        shutil.rmtree(OUTPUT / name, ignore_errors=True)
    render(OUTPUT / "scenes")
    with connect():
        say(f"joint: calibrating a threshold on {CALIBRATED} samples")
        calibrated = calibrate(load_to_calibrate(FOLDER / SPEC, joint_inputs()), CALIBRATED)
        jobs = specs()
        for each in jobs[0].quality.calibrated:
            threshold = f"{each['kind']}.{each['threshold']} is {each['value']:.3f}"
            say(f"{threshold}: {each['quantile']:.0%} of the scores are below; all scores are in {calibrated.uri}")
        finished = [run(spec) for spec in jobs]
    show(finished, time.monotonic() - started)
    return 0 if all(job.is_whole for job in finished) else 1


def render(folder: Path) -> None:
    """Write the scenes, their captions in other colours, and a corpus of their images with unfit ones among them."""
    show_progress(write_scenes(folder, SCENES, HELD_OUT_SEED), SCENES, f"scenes in {folder}")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    recoloured = [row | {"caption": recolour(row["caption"])} for row in map(json.loads, lines)]
    (folder / "recoloured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recoloured))
    unfit = [json.dumps({"id": path.stem, "rgb": f"rgb/{path.name}"}) for path in write_unfit(folder / "rgb")]
    (folder / "corpus.jsonl").write_text("".join(f"{line}\n" for line in [*lines, *unfit]))


def write_unfit(folder: Path) -> list[Path]:
    """Write four images that no corpus should keep beside the scenes' images."""
    source = folder / f"{COPIED:06d}.png"
    paths = [folder / name for name in ("copy.jpg", "blank.png", "noise.png", "cut.png")]
    with Image.open(source) as scene:
        scene.save(paths[0], quality=60)
        shape = (scene.height, scene.width, 3)
    Image.fromarray(np.full(shape, 250, np.uint8)).save(paths[1])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(paths[2])
    paths[3].write_bytes(source.read_bytes()[:2000])
    return paths


def joint_inputs() -> list[str]:
    """Return an override with the joint job's prompts, independent of the working directory."""
    return [f"input.uri={json.dumps([str(FOLDER / name) for name in ('demo_prompts.txt', 'demo_unfit.txt')])}"]


def specs() -> list[JobSpec]:
    """Return the three jobs: demo.yaml, and two with overrides. Self-consistency makes no sense for task depth."""
    depth = [
        *("task=depth", "name=demo-depth", f"output.uri={OUTPUT / 'depth'}", "model.steps=8"),
        *(f"input.uri={OUTPUT / 'scenes' / 'corpus.jsonl'}", "input.columns={id: id, image: rgb}"),
        "quality={filters: [{kind: blank_picture}, {kind: noisy_picture}, {kind: near_duplicate}]}",
    ]
    depth_to_image = [
        *("task=depth-to-image", "name=demo-depth-to-image", f"output.uri={OUTPUT / 'depth-to-image'}"),
        f"input.uri={OUTPUT / 'scenes' / 'recoloured.jsonl'}",
        *("input.columns={id: id, depth: depth, prompt: caption}", "input.depth={kind: metric}"),
        "quality={filters: [{kind: blank_picture}, {kind: self_consistency}, {kind: near_duplicate}], regenerate: 1}",
    ]
    return [load_spec(FOLDER / SPEC, overrides) for overrides in (joint_inputs(), depth, depth_to_image)]


def run(spec: JobSpec) -> Finished:
    """Run a job, validate its output, and score it."""
    say(f"{spec.task}: running")
    summary = run_job(spec)
    is_whole = show_validation(validate(spec.output.uri))
    storage = Storage(spec.output.uri)
    version = read_latest(storage)
    assert version is not None, "the job has just published one"
    rows = read_rows(storage, version, "kept", ["source", "prompt", "rgb", "depth"])
    rows.sort(key=lambda row: str(row["source"]))
    scores = judge_depth(rows) if spec.task == "depth" else judge_images(rows)
    return Finished(spec, summary, is_whole, scores, tell_lost(storage, version))


def read_rows(storage: Storage, version: Version, outcome: Outcome, columns: list[str]) -> list[dict[str, Any]]:
    """Read some columns of the samples of a version with this outcome."""
    files = (io.BytesIO(storage.read_bytes(path)) for path in version.files_of(outcome))
    return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]


def tell_lost(storage: Storage, version: Version) -> list[str]:
    """Return lines on what each filter rejected, with one reason, what was regenerated, and what was quarantined."""
    samples = read_outcomes(storage, version).to_pylist()
    reasons: dict[str, list[str]] = {}
    for sample in samples:
        for reason in sample["reasons"] or ():
            kind, _, why = reason.partition(": ")
            reasons.setdefault(kind, []).append(f"{sample['id']}: {why}")
    lines = [f"rejected by {kind}: {len(found)}, such as {found[0]}" for kind, found in reasons.items()]
    again = [sample["outcome"] for sample in samples if sample["round"]]
    if again:
        lines.append(f"new seeds for {several(len(again), 'rejected sample')}: {again.count('kept')} kept")
    for row in read_rows(storage, version, "quarantined", ["input", "error"]):
        lines.append(f"quarantined: {Path(row['input']).name}: {row['error']}")
    return lines


def judge_depth(rows: Sequence[dict[str, Any]]) -> str:
    """Score depth against the exact depth, beside two baselines that see no image."""
    scenes = {f"{number:06d}": scene for number, scene in enumerate(held_out_scenes(SCENES))}
    rows = [row for row in rows if row["source"] in scenes]  # the depth of other images is not known
    shown = [scenes[row["source"]] for row in rows]
    height, width = shown[0].depth.shape
    model = score_depth([decode_depth_png(row["depth"]["bytes"]) for row in rows], shown)
    mean = score_depth([mean_training_disparity(height, width)] * len(shown), shown)
    constant = score_depth([constant_disparity(height, width)] * len(shown), shown)

    def text(score: DepthScore) -> str:
        return f"AbsRel {score.abs_rel:.3f}, delta1 {score.delta1:.3f}"

    return f"{text(model)}\nmean training disparity: {text(mean)}\nconstant: {text(constant)}"


def judge_images(rows: Sequence[dict[str, Any]]) -> str:
    """Return the share of the colours named in the prompts that the images show."""
    images = [decode_image(row["rgb"]["bytes"])[0] for row in rows]
    prompts = [str(row["prompt"]) for row in rows]
    found, chance = check_colours(images, prompts), check_colours(images, [*prompts[1:], prompts[0]])
    return f"{found.found:.0%} of the colours named in the prompts\n{chance.found:.0%} with the prompts swapped"


def show(finished: Sequence[Finished], seconds: float) -> None:
    """Print the table, what was not kept and why, and the paths of the galleries."""
    table = Table(title=f"Demo: three jobs in {seconds:.0f} s", show_lines=True)
    for heading in ("job", "samples", "seconds", "scores"):
        table.add_column(heading)
    for job in finished:
        summary = job.summary
        assert summary.version is not None, "the demo has no limits"
        table.add_row(job.spec.task, counted(summary.version.counts), f"{summary.seconds:.0f}", job.scores)
    console.print(table)
    for job in finished:
        say(f"{job.spec.task}: {job.summary.output}/gallery/index.html")
        for line in job.lost or ["nothing was rejected or quarantined"]:
            say(f"  {line}")
    say("Open a gallery in a browser: it has tabs for kept, rejected and quarantined samples.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JointDiTError as error:
        sys.exit(f"Error: {error}")
