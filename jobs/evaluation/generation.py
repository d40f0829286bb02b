"""Parts of an evaluation that start from prompts or depth maps: scores of generated images.

Each part takes the evaluation, returns its tables, and writes its sheets to the output folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from jobs.evaluation.context import Images, SceneEvaluation, exact, generate
from jobs.evaluation.sheets import save_sheet
from jobs.recolour import recolour
from jointdit.evaluation.agreement import assumed_depth, depth_agreement, typical_range
from jointdit.evaluation.estimators import DepthEstimator
from jointdit.evaluation.scenes import EstimateDepth, evaluate_prompts, score_depth
from jointdit.evaluation.tables import Column, ResultTable
from jointdit.geometry.depth import grey_image
from jointdit.scenes.colours import ColourReport, check_two_objects

IS_SPLITS = 10
SHUFFLED = "the next sample's prompt"

COLOUR_COLUMNS = tuple(Column(name, ".0%") for name in ("found", "floor", "wall", "objects", "false alarms"))
TWO_OBJECT_COLUMNS = (Column("object colours found", ".0%"), Column("images with both", ".0%"))
AGREEMENT_COLUMNS = (Column("AbsRel"), Column("δ1"), Column("AbsRel over shuffled", ".2f"))
GENERATION_COLUMNS = tuple(Column(name, ".2f") for name in ("FID", "IS", "CLIP score"))


def joint_tables(evaluation: SceneEvaluation) -> list[ResultTable]:
    """Score images from captions: named colours, two objects, self-consistency, and FID, IS and CLIP if requested."""
    made = evaluation.generated
    cells = [(rgb, grey_image(disparity)) for rgb, disparity in zip(made.rgb, made.disparity, strict=True)]
    save_sheet(evaluation.output / "joint.png", cells)
    evaluation.details["joint_prompts"] = made.prompts
    near, far = typical_range(evaluation.scenes)
    how = f"generated disparity read as {near:.1f} to {far:.1f} m for every image (the scenes' median range)"
    truths = assumed_depth(made.disparity, (near, far))
    tables = [
        _colour_table(evaluation, "joint", made),
        _two_object_table(evaluation, made),
        _agreement_table(evaluation, "Self-consistency of joint samples", how, made, truths),
    ]
    if evaluation.features is not None or evaluation.clip is not None:
        tables.append(_generation_table(evaluation, made))
    return tables


def restyle_tables(evaluation: SceneEvaluation) -> list[ResultTable]:
    """Score images from exact depth maps, in other colours: named colours, and depth estimated from them again."""
    sources = evaluation.scenes[: evaluation.sizes.prompts]
    prompts = [recolour(scene.caption) for scene in sources]
    made = generate(evaluation.pipe, prompts, evaluation.sizes.steps, [exact(scene) for scene in sources])
    cells = [(grey_image(exact(scene)), rgb) for scene, rgb in zip(sources, made.rgb, strict=True)]
    save_sheet(evaluation.output / "depth-to-image.png", cells)
    evaluation.details["depth_to_image_prompts"] = prompts
    truths = [scene.depth for scene in sources]
    title = "Depth fidelity of depth-to-image"
    return [
        _colour_table(evaluation, "depth-to-image", made),
        _agreement_table(evaluation, title, "the condition is exact depth", made, truths),
    ]


def _colour_table(evaluation: SceneEvaluation, task: str, made: Images) -> ResultTable:
    how = f"{len(made.prompts)} held-out prompts, {evaluation.sizes.steps} steps, segmentation by nearest named colour"
    table = ResultTable(f"Named colours found: {task}", how, COLOUR_COLUMNS)
    right, wrong = evaluate_prompts(made.rgb, made.prompts)
    table.measured(evaluation.label, _colour_row(right))
    table.measured(SHUFFLED, _colour_row(wrong))
    evaluation.details[f"colours, {task}"] = {"right": asdict(right), "wrong": asdict(wrong)}
    return table


def _two_object_table(evaluation: SceneEvaluation, made: Images) -> ResultTable:
    right = check_two_objects(made.rgb, made.prompts)
    wrong = check_two_objects(made.rgb, [*made.prompts[1:], made.prompts[0]])
    how = f"{right.prompts} held-out prompts that name exactly two objects, {evaluation.sizes.steps} steps"
    table = ResultTable("Prompts with two objects", how, TWO_OBJECT_COLUMNS)
    for method, report in ((evaluation.label, right), (SHUFFLED, wrong)):
        table.measured(method, {"object colours found": report.colours, "images with both": report.both})
    return table


def _agreement_table(
    evaluation: SceneEvaluation, title: str, how: str, made: Images, truths: Sequence[NDArray[np.float32]]
) -> ResultTable:
    how = (
        f"{len(made.rgb)} samples, {evaluation.sizes.steps} steps; {how}; depth estimated again from the image, "
        "aligned by least squares"
    )
    table = ResultTable(title, how, AGREEMENT_COLUMNS)
    found = {evaluation.label: depth_agreement(evaluation.estimate, made.rgb, truths)}
    for baseline in evaluation.baselines:
        found[baseline.name] = depth_agreement(_as_batch(baseline), made.rgb, truths, baseline.space)
    for estimator, agreement in found.items():
        own = {"AbsRel": agreement.abs_rel, "δ1": agreement.delta1, "AbsRel over shuffled": agreement.error_ratio}
        table.measured(f"{evaluation.label}, estimated by {estimator}", own)
        shuffled = {"AbsRel": agreement.shuffled_abs_rel, "δ1": agreement.shuffled_delta1}
        table.measured(f"shuffled pairs, estimated by {estimator}", shuffled)
    error = score_depth(evaluation.estimated, evaluation.scenes).abs_rel
    table.notes.append(f"the model's own depth error on scenes: AbsRel {error:.3f}")
    evaluation.details[title] = {estimator: asdict(agreement) for estimator, agreement in found.items()}
    return table


def _generation_table(evaluation: SceneEvaluation, made: Images) -> ResultTable:
    from jointdit.evaluation.features import VaeFeatures
    from jointdit.evaluation.generation import clip_score, frechet_distance, inception_score

    own_vae = isinstance(evaluation.features, str)
    features = VaeFeatures(evaluation.pipe.vae, evaluation.label) if own_vae else evaluation.features
    assert not isinstance(features, str)
    through = "; ".join(network.name for network in (features, evaluation.clip) if network is not None)
    real = [scene.rgb for scene in evaluation.scenes]
    how = f"{len(made.rgb)} generated images against {len(real)} held-out ones, through {through}"
    table = ResultTable("Generated images", how, GENERATION_COLUMNS)
    values: dict[str, float | None] = {}
    if features is not None:
        values["FID"] = frechet_distance(features, real, made.rgb)
        if features.has_classes:
            values["IS"] = inception_score(features, made.rgb, min(IS_SPLITS, len(made.rgb)))
    if evaluation.clip is not None:
        values["CLIP score"] = clip_score(evaluation.clip, made.rgb, made.prompts)
    table.measured(evaluation.label, values)
    half = len(real) // 2
    if features is not None and half >= 2:
        between = frechet_distance(features, real[:half], real[half:])
        table.measured("held-out images, one half against the other", {"FID": between})
    return table


def _as_batch(estimator: DepthEstimator) -> EstimateDepth:
    return lambda images: [estimator.estimate(image) for image in images]


def _colour_row(report: ColourReport) -> dict[str, float | None]:
    values = (report.found, report.floor, report.wall, report.object, report.false_alarm)
    return {column.name: value for column, value in zip(COLOUR_COLUMNS, values, strict=True)}
