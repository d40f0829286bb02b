"""Depth models of transformers as baselines, such as Depth Anything and DPT.

They include MiDaS, ZoeDepth, GLPN and Depth Pro. A model is a folder or a hub name with config, image processor and
safetensors. The processor sets the working size.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.errors import InputError, ModelError
from jointdit.evaluation.alignment import Alignment, FloatArray
from jointdit.loading.checkpoint_files import check_foreign_model, model_name, model_type, wrap_load_errors

# Models that predict depth; every other relative model of transformers predicts inverse depth.
GIVES_DEPTH = ("depth_pro", "glpn", "tipsv2_dpt", "zoedepth")
GIVES_METRES = ("depth_pro", "glpn", "zoedepth")  # metric models whose config does not say so


class TransformersDepth:
    """A transformers model as a `DepthEstimator`.

    `space` is "depth" for models with a metric head and those of GIVES_DEPTH, else "disparity". Scale and shift are
    fitted for all models, so the metric scale of a model does not count.
    """

    def __init__(
        self, path: str, device: str = "cpu", space: Alignment | None = None, revision: str | None = None
    ) -> None:
        """Load the model in float32; `revision` is the commit, tag or branch of a hub name.

        Raises ModelError if it is missing, is not a depth model, or has no safetensors.
        """
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        check_depth_model(path)
        options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
        with wrap_load_errors(f"{path}: no depth model of transformers with an image processor and safetensors"):
            self._processor = AutoImageProcessor.from_pretrained(path, **options)
            model = AutoModelForDepthEstimation.from_pretrained(
                path, use_safetensors=True, dtype=torch.float32, **options
            )
            self._model = model.to(device).eval()
        self._device = device
        self.name = model_name(path)
        self.space: Alignment = space or _space_of(self._model.config)
        self.is_metric = _is_metric(self._model.config.to_dict())

    @torch.no_grad()
    def estimate(self, image: NDArray[np.uint8], long_side: int | None = None) -> FloatArray:
        """Return the map (H, W) at the image's size; the processor ignores `long_side`. See `DepthEstimator`."""
        return self.estimate_metric(image)[0]

    @torch.no_grad()
    def estimate_metric(self, image: NDArray[np.uint8]) -> tuple[FloatArray, float | None]:
        """Return the map (H, W), in metres if the model `is_metric`, and the focal length in pixels if it gives one.

        Raises InputError if the map is not finite.
        """
        inputs = self._processor(images=image, return_tensors="pt").to(self._device)
        height, width = image.shape[:2]
        resized = self._at_size(self._model(**inputs), height, width)
        depth = resized["predicted_depth"].reshape(height, width).float().cpu().numpy()
        if not np.isfinite(depth).all():
            raise InputError(
                f"{self.name} returned values that are not finite for an image of {width} x {height} pixels: leave "
                "the image out."
            )
        focal = resized.get("focal_length")
        return depth, None if focal is None else float(focal)

    def _at_size(self, outputs: Any, height: int, width: int) -> dict[str, Any]:
        """Resize the outputs for one image to its size with the processor, which also removes its padding."""
        after = self._processor.post_process_depth_estimation
        size = [(height, width)]
        known = {"source_sizes": size} if "source_sizes" in inspect.signature(after).parameters else {}
        resized: dict[str, Any] = after(outputs, target_sizes=size, **known)[0]
        return resized


def check_depth_model(path: str) -> None:
    """Raise ModelError if the files of a folder are not a depth model; hub names are not checked."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    check_foreign_model(path)
    kind = model_type(path)
    if kind is not None and kind not in KNOWN:
        raise ModelError(
            f"{path}: no depth model of transformers, its config.json says {kind}: give one of {', '.join(KNOWN)}."
        )


def check_metric_model(path: str) -> None:
    """Raise ModelError as `check_depth_model`, and for a folder whose config says relative depth."""
    check_depth_model(path)
    config = Path(path) / "config.json"
    if config.is_file() and not _is_metric(json.loads(config.read_text())):
        raise ModelError(f"{path} gives relative depth: give a model of metric depth.")


def _is_metric(config: Mapping[str, Any]) -> bool:
    return config.get("depth_estimation_type") == "metric" or config.get("model_type") in GIVES_METRES


def _space_of(config: Any) -> Alignment:
    is_metric = getattr(config, "depth_estimation_type", "relative") == "metric"
    return "depth" if is_metric or config.model_type in GIVES_DEPTH else "disparity"
