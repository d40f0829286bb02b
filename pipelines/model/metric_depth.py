"""`output.points.calibrate`: the range in metres of each image by a metric depth model.

The worker runs it with the models of scores (quality/model_scored.py), on images at the model's size without padding. A
and B of 1/z = A + B d are valid at any size; finish.py scales the focal length. The quality of the fit gives two scores
(quality/metric_fit.py). An image without a fit keeps the range of the spec.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jointdit.errors import InputError, ModelError
from jointdit.geometry.calibration import fit_inverse_depth
from pipelines.quality.model_scored import ScoredBatch, Scorer
from pipelines.spec.sections import CalibrateSpec


def load_calibrator(settings: CalibrateSpec, device: str) -> Scorer:
    """Load the function that adds calibrations to the results of a batch and returns scores. Raises ModelError."""
    from jointdit.evaluation.transformers_depth import TransformersDepth

    model = TransformersDepth(settings.model, device, revision=settings.revision)
    if not model.is_metric:
        raise ModelError(f"output.points.calibrate.model {settings.model} gives relative depth: give a metric one.")

    def calibrate(batch: ScoredBatch) -> list[dict[str, float]]:
        scores: list[dict[str, float]] = []
        for result, image, disparity in zip(batch.results, batch.images(), batch.disparities(), strict=True):
            try:
                depth, focal = model.estimate_metric(image)
                fitted = fit_inverse_depth(disparity, depth)
            except InputError:  # not finite
                fitted, focal = None, None
            if fitted is None:
                scores.append({"calibration_inlier_ratio": 0.0})
                continue
            result.calibration = replace(fitted, focal_pixels=focal)
            found = {"calibration_residual": fitted.residual, "calibration_inlier_ratio": fitted.inlier_ratio}
            scores.append(found)
        return scores

    return calibrate


def check_calibrator(settings: CalibrateSpec) -> int:
    """Check the files of a model's folder; returns the bytes of its weights, 0 for a hub name. Raises ModelError."""
    from jointdit.evaluation.transformers_depth import check_metric_model

    folder = Path(settings.model)
    try:
        if folder.is_absolute() and not folder.is_dir():
            raise ModelError(f"{folder}: there is no such folder, give a metric depth model of transformers.")
        check_metric_model(settings.model)
    except ModelError as error:
        raise ModelError(f"output.points.calibrate: {error}") from error
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
