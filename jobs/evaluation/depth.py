"""Parts of an evaluation that start from scenes: VAE, depth by style and by steps, points.

Each part takes the evaluation, returns its tables, and writes its sheets to the output folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from jobs.evaluation.context import BATCH, SHOWN, SceneEvaluation, exact, generate
from jobs.evaluation.sheets import Rgb, save_sheet, stretched
from jointdit.evaluation.alignment import fit_scale_shift
from jointdit.evaluation.baselines import constant_disparity
from jointdit.evaluation.estimators import JointDiTEstimator
from jointdit.evaluation.lifting import score_lifting
from jointdit.evaluation.scenes import DepthScore, depth_estimator, evaluate_vae, score_depth
from jointdit.evaluation.tables import Column, ResultTable
from jointdit.geometry.depth import grey_image
from jointdit.scenes import Scene
from jointdit.scenes.colours import check_colours
from jointdit.scenes.styles import STYLES

STEPS_COMPARED = (4, 8, 20)
STEPS_SCENES = 50  # at most, in the comparison of steps

DEPTH_COLUMNS = (Column("AbsRel"), Column("δ1"), Column("within 5 %"), Column("AbsRel on objects"))
LIFTING_COLUMNS = (
    Column("flatness, %", ".2f"),
    Column("bend, %", ".2f"),
    Column("tilt, °", ".1f"),
    Column("surface error, %", ".2f"),
)
STEPS_COLUMNS = (
    *DEPTH_COLUMNS,
    Column("s/depth map", ".3f"),
    Column("colours found", ".0%"),
    Column("s/joint sample", ".3f"),
)


def vae_tables(evaluation: SceneEvaluation) -> list[ResultTable]:
    """Measure the autoencoder's round trip."""
    images = np.stack([scene.rgb for scene in evaluation.scenes])
    report = evaluate_vae(lambda batch: _reconstruct(evaluation, batch), images)
    axes = [Column(f"R² {axis.replace('_', '-')}") for axis in report.opponent_r2]
    columns = [Column("PSNR, dB", ".1f"), *axes, Column("worst colour kept", ".0%")]
    table = ResultTable("Autoencoder", f"round trip of {len(images)} held-out images", columns)
    kept = [share for share in report.colours_kept.values() if np.isfinite(share)]
    table.measured(evaluation.label, _row(columns, [report.psnr_db, *report.opponent_r2.values(), min(kept)]))
    evaluation.details["vae"] = asdict(report)
    return [table]


def depth_tables(evaluation: SceneEvaluation) -> list[ResultTable]:
    """Score depth beside another image's depth, baselines that see no image, and models of transformers."""
    scenes, found = evaluation.scenes, evaluation.estimated
    height, width = scenes[0].depth.shape
    blind = {
        "mean training disparity": score_depth([evaluation.mean_disparity] * len(scenes), scenes),
        "constant": score_depth([constant_disparity(height, width)] * len(scenes), scenes),
    }
    model = score_depth(found, scenes)
    scores = {evaluation.label: model, "the next scene's image": score_depth([*found[1:], found[0]], scenes)}
    scores |= {**blind, **_baseline_scores(evaluation, scenes)}
    table = ResultTable(f"Depth on {len(scenes)} scenes", evaluation.protocol, DEPTH_COLUMNS)
    for method, score in scores.items():
        table.measured(method, _depth_row(score))
    ratio = model.abs_rel / min(score.abs_rel for score in blind.values())
    table.notes.append(f"error over that of the better baseline that sees no image: {ratio:.2f}")
    evaluation.details["depth"] = {method: asdict(score) for method, score in scores.items()} | {"error_ratio": ratio}
    cells = [(s.rgb, grey_image(exact(s)), grey_image(d)) for s, d in zip(scenes[:SHOWN], found, strict=False)]
    save_sheet(evaluation.output / "depth.png", cells)
    if evaluation.sizes.ensemble > 1:
        table.notes.append(_uncertainty(evaluation))
    return [table]


def style_tables(evaluation: SceneEvaluation) -> list[ResultTable]:
    """Score depth of the same scenes as toon drawings and pixel art."""
    scenes = evaluation.scenes
    table = ResultTable(f"Depth on {len(scenes)} scenes by style", evaluation.protocol, DEPTH_COLUMNS)
    table.measured(f"{evaluation.label}, as rendered", _depth_row(score_depth(evaluation.estimated, scenes)))
    cells: list[list[Rgb]] = [[] for _ in scenes[:SHOWN]]
    for style, draw in STYLES.items():
        drawn = [draw(scene) for scene in scenes]
        found = evaluation.estimate([scene.rgb for scene in drawn])
        table.measured(f"{evaluation.label}, {style}", _depth_row(score_depth(found, drawn)))
        for method, score in _baseline_scores(evaluation, drawn).items():
            table.measured(f"{method}, {style}", _depth_row(score))
        for cell, scene, disparity in zip(cells, drawn, found, strict=False):
            cell += [scene.rgb, grey_image(disparity)]
    blind = score_depth([evaluation.mean_disparity] * len(scenes), scenes)
    table.measured("mean training disparity", _depth_row(blind))
    save_sheet(evaluation.output / "styles.png", [tuple(cell) for cell in cells])
    return [table]


def lifting_tables(evaluation: SceneEvaluation) -> list[ResultTable]:
    """Score points: flatness of planes, bent walls, distance to the exact surface."""
    scenes = evaluation.scenes
    how = f"{evaluation.protocol}; exact intrinsics; lengths in % of the distance to the camera"
    table = ResultTable(f"3D lifting of {len(scenes)} scenes", how, LIFTING_COLUMNS)
    scores = {
        evaluation.label: score_lifting(evaluation.estimated, scenes),
        "mean training disparity": score_lifting([evaluation.mean_disparity] * len(scenes), scenes),
    }
    for baseline in evaluation.baselines:
        maps = [baseline.estimate(scene.rgb) for scene in scenes]
        scores[baseline.name] = score_lifting(maps, scenes, baseline.space)
    for method, score in scores.items():
        table.measured(method, _row(LIFTING_COLUMNS, [score.flatness, score.bend, score.tilt, score.surface_error]))
    table.notes.append(f"{scores[evaluation.label].planes} planes: floors, walls and faces of cubes")
    table.notes.append("bent walls are reported of JointDiT in words only: no published figure was found")
    evaluation.details["lifting"] = {method: asdict(score) for method, score in scores.items()}
    return [table]


def step_tables(evaluation: SceneEvaluation) -> list[ResultTable]:
    """Compare few and many sampling steps: error and seconds."""
    scenes, prompts = evaluation.scenes[:STEPS_SCENES], evaluation.captions
    how = f"{len(scenes)} held-out scenes and {len(prompts)} prompts; seconds on this machine, in batches of {BATCH}"
    table = ResultTable("Sampling steps", how, STEPS_COLUMNS)
    cells: list[list[Rgb]] = [[scene.rgb, grey_image(exact(scene))] for scene in scenes[:SHOWN]]
    for steps in STEPS_COMPARED:
        start = time.perf_counter()
        found = depth_estimator(evaluation.pipe, steps, BATCH)([scene.rgb for scene in scenes])
        seconds = (time.perf_counter() - start) / len(scenes)
        images = generate(evaluation.pipe, prompts, steps)
        values = _depth_row(score_depth(found, scenes))
        values |= {"s/depth map": seconds, "s/joint sample": images.seconds}
        values["colours found"] = check_colours(images.rgb, prompts).found
        table.measured(f"{evaluation.label}, {steps} steps", values)
        for cell, disparity in zip(cells, found, strict=False):
            cell.append(grey_image(disparity))
    save_sheet(evaluation.output / "steps.png", [tuple(cell) for cell in cells])
    return [table]


def _uncertainty(evaluation: SceneEvaluation) -> str:
    """Save a sheet of image, error and uncertainty; return one sentence on their correlation."""
    sizes = evaluation.sizes
    estimator = JointDiTEstimator(evaluation.pipe, evaluation.label, sizes.depth_steps, ensemble=sizes.ensemble)
    cells, correlations = [], []
    for scene in evaluation.scenes[:SHOWN]:
        merged, uncertainty = estimator.estimate_with_uncertainty(scene.rgb)
        truth = exact(scene)
        fit = fit_scale_shift(merged, truth, np.ones(truth.shape, bool))
        error = np.abs(merged * fit.scale + fit.shift - truth)
        if uncertainty.std() > 0:
            correlations.append(float(np.corrcoef(error.ravel(), uncertainty.ravel())[0, 1]))
        cells.append((scene.rgb, stretched(error), stretched(uncertainty)))
    save_sheet(evaluation.output / "uncertainty.png", cells)
    mean = float(np.mean(correlations)) if correlations else float("nan")
    return f"uncertainty and error of the ensemble: correlation {mean:.2f} over the pixels of {len(cells)} scenes"


def _baseline_scores(evaluation: SceneEvaluation, scenes: Sequence[Scene]) -> dict[str, DepthScore]:
    return {
        baseline.name: score_depth([baseline.estimate(scene.rgb) for scene in scenes], scenes, baseline.space)
        for baseline in evaluation.baselines
    }


def _reconstruct(evaluation: SceneEvaluation, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode images (N, H, W, 3) with the VAE."""
    import torch

    from jointdit.pixels import image_to_vae, vae_to_image

    pipe, (height, width) = evaluation.pipe, images.shape[1:3]
    batches = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            latents = pipe.encode_pixels(image_to_vae(images[start : start + BATCH]))
            batches.append(vae_to_image(pipe.decode_pixels(latents, height, width))[0])
    return np.concatenate(batches)


def _depth_row(score: DepthScore) -> dict[str, float | None]:
    return _row(DEPTH_COLUMNS, [score.abs_rel, score.delta1, score.within_5_percent, score.object_abs_rel])


def _row(columns: Sequence[Column], values: Sequence[float]) -> dict[str, float | None]:
    return {column.name: value for column, value in zip(columns, values, strict=True)}
