"""Task `prepare`: relative disparity by teachers, and captions by a captioner.

    Teacher           an image (H, W, 3) -> disparity (H, W), near is high, of any scale and shift
    DepthTeacher      any depth model of transformers (AutoModelForDepthEstimation), such as Depth-Anything-V2
    mean_disparity    the mean of several teachers' maps, each aligned to the first
    Captioner         any image-to-text model of transformers (AutoModelForImageTextToText), such as BLIP

A student learns the bias of its teacher, which the paper names as a limit, so several teachers can be averaged. Weights
load from safetensors only, and code of a checkpoint is never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import ModelError
from jointdit.loading.network_errors import network_errors
from pipelines.records import Sample

if TYPE_CHECKING:
    from pipelines.spec.job import PrepareSpec


class Teacher(Protocol):
    """Estimates disparity."""

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Estimate the disparity (H, W) of each image (H, W, 3) at its size; near is high."""


class DepthTeacher:
    """A transformers model of relative depth that predicts disparity, as MiDaS, DPT and Depth-Anything do."""

    def __init__(self, name: str, device: str, dtype: Any) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.device = device
        self.processor = _load(AutoImageProcessor, name)
        self.model = _load(AutoModelForDepthEstimation, name, dtype=dtype, use_safetensors=True).eval().to(device)
        if getattr(self.model.config, "depth_estimation_type", "relative") == "metric":
            raise ModelError(f"teachers: {name} predicts metric depth: give a model of relative depth.")

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Estimate disparities of images of one size. See `Teacher`."""
        import torch

        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device, self.model.dtype)
        with torch.inference_mode():
            predicted = self.model(**inputs).predicted_depth.float()
        size = images[0].shape[:2]
        maps = torch.nn.functional.interpolate(predicted[:, None], size, mode="bicubic", align_corners=False)
        return list(maps[:, 0].cpu().numpy())


class Captioner:
    """A transformers model that describes images."""

    def __init__(self, name: str, device: str, dtype: Any, max_tokens: int) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device, self.max_tokens = device, max_tokens
        self.processor = _load(AutoProcessor, name)
        self.model = _load(AutoModelForImageTextToText, name, dtype=dtype, use_safetensors=True).eval().to(device)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Return one caption per image, by greedy search, which is deterministic."""
        import torch

        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device, self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False, num_beams=1)
        return [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


class Preparer:
    """All teachers and the captioner of a job, loaded once."""

    def __init__(self, spec: PrepareSpec, device: str) -> None:
        import torch

        dtype = getattr(torch, spec.model.dtype)
        self.teachers: list[Teacher] = [DepthTeacher(name, device, dtype) for name in spec.teachers]
        self.captioner = Captioner(spec.captioner, device, dtype, spec.caption_length) if spec.captioner else None

    def __call__(self, batch: Sequence[Sample]) -> list[tuple[NDArray[np.float32], str | None]]:
        """Return (relative disparity (H, W) in [0, 1], caption or None) of each sample."""
        images = [sample.rgb for sample in batch if sample.rgb is not None]
        captions = self.captioner(images) if self.captioner else [None] * len(images)
        opinions = [teacher(images) for teacher in self.teachers]
        return [
            (relative(mean_disparity(list(maps))), caption) for *maps, caption in zip(*opinions, captions, strict=True)
        ]


def mean_disparity(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the mean of maps (H, W), after aligning each to the first by least squares in scale and shift."""
    reference = maps[0].astype(np.float64)
    total = reference.copy()
    for other in maps[1:]:
        values = other.astype(np.float64)
        centred = values - values.mean()
        variance = float((centred**2).mean())
        scale = float((centred * (reference - reference.mean())).mean()) / variance if variance > 0 else 0.0
        total += scale * centred + reference.mean()
    return (total / len(maps)).astype(np.float32)


def relative(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a map (H, W) to [0, 1]; a constant map becomes 0."""
    low, high = disparity.min(), disparity.max()
    spread: NDArray[np.float32] = (disparity - low) / (high - low) if high > low else np.zeros_like(disparity)
    return spread


def check_teacher(name: str) -> None:
    """Raise ModelError if a local folder has no config or no safetensors."""
    from jointdit.loading.checkpoint_files import folder_tensor_shapes

    folder = Path(name)
    if folder.is_absolute():
        folder_tensor_shapes(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: config.json is missing, give a model saved with save_pretrained.")


def _load(kind: Any, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except network_errors(OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name}: cannot be loaded by {kind.__name__} ({reason}).") from error
