"""Feature networks for FID, Inception score and CLIP score, loaded from safetensors only.

- an Inception-v3 file (inception.safetensors): FID and Inception score that are comparable with published ones (see
  inception.py);
- a transformers vision model, folder or hub name: FID on its pooled features; an image classifier also gives an
  Inception score;
- a checkpoint's own VAE, which is always available: mean and standard deviation of its latents' channels. It is only
  for comparing checkpoints with the same VAE;
- a CLIP model of transformers, for the CLIP score.

torchmetrics downloads Inception as a pickle, which can run code.
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
from jointdit.loading.checkpoint_files import PICKLES, check_foreign_model, model_name, model_type, wrap_load_errors
from jointdit.loading.network_errors import network_errors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class FeatureNetwork(Protocol):
    """Maps images (N, 3, H, W) uint8 to features (N, F); `name` appears in tables."""

    name: str
    num_features: int
    has_classes: bool

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return class scores (N, K), if `has_classes`."""
        ...


class InceptionFeatures(nn.Module):
    """Inception-v3 of 2015: the features before its classifier."""

    name = "Inception-v3 (2015-12-05), 2048 features"
    num_features = FEATURES
    has_classes = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.network: Inception = load_inception(path)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(images)
        return features

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.logits(images)


class TransformersFeatures(nn.Module):
    """Pooled output (N, F) of a transformers vision model; class scores if it is an image classifier."""

    def __init__(self, path: str) -> None:
        """Load the model. Raises ModelError if it is not a vision model or has no safetensors."""
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

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = getattr(self.network, self.network.base_model_prefix, self.network)(**self._inputs(images))
        pooled: torch.Tensor | None = getattr(out, "pooler_output", None)
        if pooled is None:
            hidden = out.last_hidden_state
            pooled = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return pooled.flatten(1).float()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(**self._inputs(images)).logits.float()
        return scores

    def _inputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        arrays = [image.permute(1, 2, 0).cpu().numpy() for image in images]
        return {"pixel_values": self._processor(images=arrays, return_tensors="pt")["pixel_values"].to(images.device)}


class VaeFeatures(nn.Module):
    """Mean and standard deviation over the image of each channel of a VAE's latents."""

    has_classes = False

    def __init__(self, vae: AutoencoderKL, name: str) -> None:
        super().__init__()
        self.vae = vae
        self.num_features = 2 * int(vae.config.latent_channels)
        self.name = f"latents of {name}'s VAE, {self.num_features} features"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (images.float() / 127.5 - 1).to(self.vae.device, self.vae.dtype)
        latents: torch.Tensor = self.vae.encode(pixels).latent_dist.mean.float()
        return torch.cat([latents.mean(dim=(2, 3)), latents.std(dim=(2, 3))], dim=1).to(images.device)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a VAE has no classes")


def load_features(path: str) -> InceptionFeatures | TransformersFeatures:
    """Load an Inception-v3 safetensors file, or a transformers model by folder or hub name.

    Raises ModelError for anything else, pickled weights included.
    """
    if Path(path).suffix in PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code: convert it to safetensors (jointdit/evaluation/inception.py)."
        )
    return InceptionFeatures(Path(path)) if Path(path).suffix == ".safetensors" else TransformersFeatures(path)


class Clip(NamedTuple):
    """A CLIP model of transformers with its processor; `name` appears in tables."""

    name: str
    model: Any
    processor: Any


def load_clip(path: str, device: str = "cpu", revision: str | None = None) -> Clip:
    """Load a CLIP model in float32 from a folder or hub name.

    revision: the commit, tag or branch of a hub name. Raises ModelError if it is not a CLIP model or has no
    safetensors.
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
    """Raise ModelError if the files of a folder are not a CLIP model; hub names are not checked."""
    check_foreign_model(path)
    kind = model_type(path)
    if kind not in (None, "clip"):
        raise ModelError(f"{path}: no CLIP model of transformers, its config.json says {kind}: give a CLIP model.")


@torch.no_grad()
def text_agreement(clip: Clip, image: NDArray[np.uint8], text: str) -> float:
    """Return 100 times the cosine between an image (H, W, 3) and a text: the CLIP score, not clipped at 0.

    The text is truncated to the length of the text encoder.
    """
    length = clip.model.config.text_config.max_position_embeddings
    inputs = clip.processor(
        text=[text], images=[image], return_tensors="pt", padding=True, truncation=True, max_length=length
    ).to(clip.model.device)
    out = clip.model(**inputs)
    return 100 * float(torch.nn.functional.cosine_similarity(out.image_embeds.float(), out.text_embeds.float()))
