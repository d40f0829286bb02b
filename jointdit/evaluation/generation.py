"""Generated images as a set: FID against real ones, Inception score, CLIP score, computed by torchmetrics.

    pip install 'jointdit[evaluation]'

The networks they look through are those of features.py. Which one it was belongs to the protocol: FIDs on different
features have nothing to do with each other.
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
    """FID between two sets of images (H, W, 3); the mean and covariance of features are summed in float64.

    Raises InputError for sets of less than two images.
    """
    if min(len(real), len(generated)) < 2:
        raise InputError(f"{len(real)} real and {len(generated)} generated images: FID needs at least two of each.")
    metric = _torchmetrics("image.fid").FrechetInceptionDistance(feature=_Double(features))
    for pictures, are_real in ((real, True), (generated, False)):
        for batch in _batches(pictures):
            metric.update(batch, real=are_real)
    return float(metric.compute())


@torch.no_grad()
def inception_score(features: FeatureNetwork, pictures: Images, splits: int = 10) -> float:
    """exp of the mean divergence between an image's classes and the set's, mean over `splits` parts of the set.

    Raises InputError for a network without classes, or less images than parts.
    """
    if not features.has_classes:
        raise InputError(
            f"{features.name}: the Inception score needs an image classifier, this network has no classes."
        )
    if len(pictures) < splits:
        raise InputError(f"{len(pictures)} images are less than the {splits} parts of the Inception score.")
    with warnings.catch_warnings():
        # It says that it keeps all features in memory, and that the spread of a single part has no meaning.
        warnings.simplefilter("ignore", UserWarning)
        metric = _torchmetrics("image.inception").InceptionScore(feature=_Logits(features), splits=splits)
        with torch.random.fork_rng(devices=[]):  # the metric shuffles by the global generator
            torch.manual_seed(0)
            for batch in _batches(pictures):
                metric.update(batch)
            return float(metric.compute()[0])


@torch.no_grad()
def clip_score(clip: Clip, pictures: Images, prompts: Sequence[str]) -> float:
    """100 times the mean cosine between image i and prompt i, 0 where that is negative.

    Prompts longer than the text encoder takes are cut. Raises InputError where the numbers differ.
    """
    if len(pictures) != len(prompts):
        raise InputError(f"{len(pictures)} images and {len(prompts)} prompts: give one prompt an image.")
    metric = _torchmetrics("multimodal.clip_score").CLIPScore(
        model_name_or_path=lambda: (_ClipEmbeddings(clip.model), _CutTexts(clip))
    )
    for start, batch in zip(range(0, len(pictures), BATCH), _batches(pictures), strict=True):
        metric.update(batch, list(prompts[start : start + BATCH]))
    return float(metric.compute())


class _ClipEmbeddings(nn.Module):
    """torchmetrics expects embeddings where transformers 5 returns an output object that holds them."""

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
    """The processor with texts cut by the tokenizer: torchmetrics cuts the end token off instead."""

    def __init__(self, clip: Clip) -> None:
        self._processor, self._length = clip.processor, clip.model.config.text_config.max_position_embeddings

    def __call__(self, text: list[str] | None = None, images: Any = None, **options: Any) -> Any:
        if text is not None:
            options |= {"truncation": True, "max_length": self._length}
        return self._processor(text=text, images=images, **options)


class _Logits(nn.Module):
    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self._features = [features]  # in a list: not a child, torchmetrics may move and copy children

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._features[0].logits(pictures)


class _Double(nn.Module):
    """Features in float64: the last step of torchmetrics' FID rounds to the dtype of the features."""

    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self._features, self.num_features = [features], features.num_features

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._features[0](pictures).double()


def _batches(pictures: Images) -> Iterator[torch.Tensor]:
    """(N, 3, H, W) uint8. Raises InputError for images of several sizes."""
    sizes = {image.shape for image in pictures}
    if len(sizes) > 1:
        raise InputError(f"images have sizes {sorted(sizes)}: bring them to one size first.")
    for start in range(0, len(pictures), BATCH):
        yield torch.from_numpy(np.stack(pictures[start : start + BATCH])).permute(0, 3, 1, 2)


def check_installed() -> None:
    """Raise PermanentError where torchmetrics is missing: said before hours of sampling, not after."""
    _torchmetrics("image.fid")


def _torchmetrics(module: str) -> Any:
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    except ModuleNotFoundError as error:
        raise PermanentError("torchmetrics is not installed: pip install 'jointdit[evaluation]'.") from error
