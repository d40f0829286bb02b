"""Metrics of generated images: FID, Inception score and CLIP score, by torchmetrics.

    pip install 'jointdit[evaluation]'

features.py loads their networks. The network is part of the protocol: FIDs on different features cannot be compared.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jointdit.errors import InputError, PermanentError
from jointdit.evaluation.features import Clip, FeatureNetwork

BATCH = 16
Images = Sequence[NDArray[np.uint8]]


@torch.no_grad()
def frechet_distance(features: FeatureNetwork, real: Images, generated: Images) -> float:
    """Return the FID between two sets of images (H, W, 3), computed in float64.

    Raises InputError for sets of fewer than two images.
    """
    if min(len(real), len(generated)) < 2:
        raise InputError(f"{len(real)} real and {len(generated)} generated images: FID needs at least two of each.")
    metric = _torchmetrics("image.fid").FrechetInceptionDistance(feature=_Double(features))
    for images, are_real in ((real, True), (generated, False)):
        for batch in _batches(images):
            metric.update(batch, real=are_real)
    return float(metric.compute())


@torch.no_grad()
def inception_score(features: FeatureNetwork, images: Images, splits: int = 10) -> float:
    """Return the Inception score of images (H, W, 3), the mean over `splits` parts of the set.

    The score of a part is the exponential of the mean divergence between an image's classes and the part's. Raises
    InputError for a network without classes, or fewer images than parts.
    """
    if not features.has_classes:
        raise InputError(
            f"{features.name}: this network has no classes, give an image classifier for the Inception score."
        )
    if len(images) < splits:
        raise InputError(f"{len(images)} images are fewer than the {splits} parts of the Inception score: give more.")
    with warnings.catch_warnings():
        # torchmetrics warns that it keeps all features in memory, and of the deviation of a single part.
        warnings.simplefilter("ignore", UserWarning)
        metric = _torchmetrics("image.inception").InceptionScore(feature=_Logits(features), splits=splits)
        with torch.random.fork_rng(devices=[]):  # the metric shuffles with the global generator
            torch.manual_seed(0)
            for batch in _batches(images):
                metric.update(batch)
            return float(metric.compute()[0])


@torch.no_grad()
def clip_score(clip: Clip, images: Images, prompts: Sequence[str]) -> float:
    """Return 100 times the mean cosine between image i (H, W, 3) and prompt i, or 0 if that is negative.

    Prompts are truncated to the length of the text encoder. Raises InputError if the numbers differ.
    """
    if len(images) != len(prompts):
        raise InputError(f"{len(images)} images and {len(prompts)} prompts: give one prompt per image.")
    metric = _torchmetrics("multimodal.clip_score").CLIPScore(
        model_name_or_path=lambda: (_ClipEmbeddings(clip.model), _CutTexts(clip))
    )
    for start, batch in zip(range(0, len(images), BATCH), _batches(images), strict=True):
        metric.update(batch, list(prompts[start : start + BATCH]))
    return float(metric.compute())


class _ClipEmbeddings(nn.Module):
    """CLIP with embeddings as outputs: torchmetrics expects tensors, and transformers 5 returns output objects."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.model.get_image_features(pixel_values=pixel_values).pooler_output
        return embeddings

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        embeddings: torch.Tensor = out.pooler_output
        return embeddings


class _CutTexts:
    """The processor with truncation by the tokenizer: torchmetrics would remove the end token."""

    def __init__(self, clip: Clip) -> None:
        self._processor, self._length = clip.processor, clip.model.config.text_config.max_position_embeddings

    def __call__(self, text: list[str] | None = None, images: Any = None, **options: Any) -> Any:
        if text is not None:
            options |= {"truncation": True, "max_length": self._length}
        return self._processor(text=text, images=images, **options)


class _Logits(nn.Module):
    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self._features = [features]  # in a list, so that it is not a child that torchmetrics moves and copies

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._features[0].logits(images)


class _Double(nn.Module):
    """Features in float64, because torchmetrics' FID rounds its result to the dtype of the features."""

    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self._features, self.num_features = [features], features.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._features[0](images).double()


def _batches(images: Images) -> Iterator[torch.Tensor]:
    """Yield batches (N, 3, H, W) uint8. Raises InputError for images of several sizes."""
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise InputError(f"images have sizes {sorted(sizes)}: resize them to one size.")
    for start in range(0, len(images), BATCH):
        yield torch.from_numpy(np.stack(images[start : start + BATCH])).permute(0, 3, 1, 2)


def check_installed() -> None:
    """Raise PermanentError if torchmetrics is not installed. Call it before sampling."""
    _torchmetrics("image.fid")


def _torchmetrics(module: str) -> Any:
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    except ModuleNotFoundError as error:
        raise PermanentError("torchmetrics is not installed: pip install 'jointdit[evaluation]'.") from error
