"""What generated images are looked at through: networks given by path, from safetensors only.

- an Inception-v3 file (inception.safetensors): FID and Inception score as published ones are (see inception.py);
- a folder or hub name of a transformers vision model: FID on its pooled features; an image classifier among them also
  gives an Inception score;
- a checkpoint's own VAE, which is always at hand: mean and spread of its latents' channels. For comparing checkpoints
  of one family with each other, nothing else;
- a CLIP model of transformers, for the CLIP score.

torchmetrics' own downloads of Inception are pickles, and pickles can run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jointdit.errors import ModelError
from jointdit.evaluation.inception import FEATURES, Inception, load_inception
from jointdit.loading.checkpoint_files import check_foreign_model, model_name, model_type, wrap_load_errors
from jointdit.loading.network_errors import network_errors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")


class FeatureNetwork(Protocol):
    """What FID looks through: images (N, 3, H, W) uint8 -> features (N, F), and the name a table gives it."""

    name: str
    num_features: int
    has_classes: bool

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor: ...

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """Class scores (N, K), where `has_classes`."""
        ...


class InceptionFeatures(nn.Module):
    """Inception-v3 of 2015, features before the classes."""

    name = "Inception-v3 (2015-12-05), 2048 features"
    num_features = FEATURES
    has_classes = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.network: Inception = load_inception(path)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(pictures)
        return features

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network.logits(pictures)


class TransformersFeatures(nn.Module):
    """Pooled output of a transformers vision model, (N, F); class scores where it is an image classifier."""

    def __init__(self, path: str) -> None:
        """Load the model. Raises ModelError for what is no vision model, or holds no safetensors."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

        super().__init__()
        try:
            check_foreign_model(path)
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            self.has_classes = any("ForImageClassification" in name for name in config.architectures or ())
            kind = AutoModelForImageClassification if self.has_classes else AutoModel
            self._processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
            network = kind.from_pretrained(path, use_safetensors=True, trust_remote_code=False)
            self.network = network.eval().requires_grad_(False)
        except ModelError:
            raise
        except network_errors(OSError, ValueError, ImportError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{path}: neither an Inception-v3 safetensors file nor a vision model of transformers ({reason})."
            ) from error
        probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        self.num_features = int(self(probe).shape[1])
        self.name = f"{model_name(path)}, {self.num_features} features"

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        out = getattr(self.network, self.network.base_model_prefix, self.network)(**self._inputs(pictures))
        pooled: torch.Tensor | None = getattr(out, "pooler_output", None)
        if pooled is None:
            hidden = out.last_hidden_state
            pooled = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return pooled.flatten(1).float()

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(**self._inputs(pictures)).logits.float()
        return scores

    def _inputs(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        arrays = [image.permute(1, 2, 0).cpu().numpy() for image in pictures]
        return {"pixel_values": self._processor(images=arrays, return_tensors="pt")["pixel_values"].to(pictures.device)}


class VaeFeatures(nn.Module):
    """Mean and standard deviation over an image of each channel of a VAE's latents."""

    has_classes = False

    def __init__(self, vae: AutoencoderKL, name: str) -> None:
        super().__init__()
        self.vae = vae
        self.num_features = 2 * int(vae.config.latent_channels)
        self.name = f"latents of {name}'s VAE, {self.num_features} features"

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        pixels = (pictures.float() / 127.5 - 1).to(self.vae.device, self.vae.dtype)
        latents: torch.Tensor = self.vae.encode(pixels).latent_dist.mean.float()
        return torch.cat([latents.mean(dim=(2, 3)), latents.std(dim=(2, 3))], dim=1).to(pictures.device)

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a VAE knows no classes")


def load_features(path: str) -> InceptionFeatures | TransformersFeatures:
    """The network of a path: an Inception-v3 safetensors file, or a folder or hub name of transformers.

    Raises ModelError for anything else; pickled weights are refused.
    """
    if Path(path).suffix in PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code: turn it into safetensors (jointdit/evaluation/inception.py)."
        )
    return InceptionFeatures(Path(path)) if Path(path).suffix == ".safetensors" else TransformersFeatures(path)


class Clip(NamedTuple):
    """A CLIP model of transformers with its processor, and the name a table gives it."""

    name: str
    model: Any
    processor: Any


def load_clip(path: str, device: str = "cpu", revision: str | None = None) -> Clip:
    """A CLIP model, in float32, from a folder or hub name. Raises ModelError for what is none, or holds no safetensors.

    revision: the commit, tag or branch of a hub name.
    """
    from transformers import CLIPModel, CLIPProcessor

    check_clip(path)
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    with wrap_load_errors(f"{path}: no CLIP model of transformers with safetensors"):
        model, info = CLIPModel.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
        processor = CLIPProcessor.from_pretrained(path, **options)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{path}: tensor {missing[0]} ({len(missing)} in all) is missing, download or save it again.")
    return Clip(model_name(path), model.to(device).eval(), processor)


def check_clip(path: str) -> None:
    """Refuse a folder that holds no CLIP model, by its files alone; a hub name passes. Raises ModelError."""
    check_foreign_model(path)
    kind = model_type(path)
    if kind not in (None, "clip"):
        raise ModelError(f"{path}: no CLIP model of transformers, its config.json says {kind}: give a CLIP model.")


@torch.no_grad()
def text_agreement(clip: Clip, image: NDArray[np.uint8], text: str) -> float:
    """100 times the cosine between an image (H, W, 3) and a text: the CLIP score of one pair, without its floor at 0.

    A text that is longer than the text encoder takes is cut.
    """
    length = clip.model.config.text_config.max_position_embeddings
    inputs = clip.processor(
        text=[text], images=[image], return_tensors="pt", padding=True, truncation=True, max_length=length
    ).to(clip.model.device)
    out = clip.model(**inputs)
    return 100 * float(torch.nn.functional.cosine_similarity(out.image_embeds.float(), out.text_embeds.float()))
