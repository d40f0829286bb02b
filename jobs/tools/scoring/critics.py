"""Small critics of the real classes of transformers, fitted to rendered scenes.

A GLPN that estimates metric depth, and a CLIP with a vocabulary from the scenes' captions. The filters load them like
any other checkpoint. They work on rendered scenes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jointdit.loading.cpu_dtype import autocast_to_bfloat16
from jointdit.scenes import Scene

SIDE = 64  # side of an image in pixels, for both
TEXT_BATCH = 32
DEPTH_BATCH = 16  # a small batch: more steps in the same time give a better fit
FARTHEST = 20  # largest depth of the GLPN in metres
TYPICAL = 4.0  # its depth before training in metres


def fit_depth_critic(folder: Path, scenes: Sequence[Scene], steps: int, seed: int = 0) -> Path:
    """Fit a GLPN (Kim et al., arXiv 2201.07436) to images (SIDE, SIDE) and depth in metres; return its folder.

    Images are mirrored at random. Weights are initialized after He et al. (arXiv 1502.01852) and Glorot and Bengio
    (2010), because the default standard deviation of 0.02 is too small for such narrow layers. Steps run in bfloat16
    if the CPU supports it, in half the time of float32; the weights are float32.
    """
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessorPil

    torch.manual_seed(seed)
    config = GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 64, 96, 128],
        num_attention_heads=[1, 2, 4, 4],
        mlp_ratios=[2, 2, 2, 2],
        drop_path_rate=0.0,
        decoder_hidden_size=32,
        max_depth=FARTHEST,
    )
    model = GLPNForDepthEstimation(config)
    model.apply(_initialize)
    last: Any = model.head.head[-1]
    nn.init.normal_(last.weight, std=0.02)
    nn.init.constant_(last.bias, float(np.log(TYPICAL / (FARTHEST - TYPICAL))))  # before the sigmoid
    model.to(memory_format=torch.channels_last)
    processor = GLPNImageProcessorPil()
    images = torch.stack([processor(images=scene.rgb, return_tensors="pt")["pixel_values"][0] for scene in scenes])
    depths = torch.from_numpy(np.stack([scene.depth for scene in scenes]).astype(np.float32)).log()

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        is_mirrored = (torch.rand(len(chosen)) < 0.5)[:, None, None]
        target = torch.where(is_mirrored, depths[chosen].flip(-1), depths[chosen])
        rgb = torch.where(is_mirrored[..., None], images[chosen].flip(-1), images[chosen])
        with autocast_to_bfloat16("cpu"):
            predicted = model(pixel_values=rgb.contiguous(memory_format=torch.channels_last)).predicted_depth
        return _shape_loss(predicted.float().clamp(min=0.05).log() - target)

    _fit(model, loss, len(scenes), steps, DEPTH_BATCH, 2e-3)
    model.to(memory_format=torch.contiguous_format)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _shape_loss(error: torch.Tensor) -> torch.Tensor:
    """Return the loss of errors of log depth (B, H, W): shape, scale with a small weight, and gradients.

    The scale has a small weight because one image does not determine it. Gradients over 1, 2 and 4 pixels are matched
    as in MegaDepth (Li and Snavely, arXiv 1804.00607) and MiDaS.
    """
    scale = error.mean((1, 2), keepdim=True)
    steps = [
        (error[:, step:] - error[:, :-step]).abs().mean() + (error[..., step:] - error[..., :-step]).abs().mean()
        for step in (1, 2, 4)
    ]
    return (error - scale).abs().mean() + 0.1 * scale.abs().mean() + 0.5 * torch.stack(steps).sum()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)


def fit_text_critic(folder: Path, scenes: Sequence[Scene], steps: int, seed: int = 0) -> Path:
    """Fit a CLIP (Radford et al., arXiv 2103.00020) to images (SIDE, SIDE) and captions; return its folder.

    The loss is CLIP's over the pairs of a batch. The vocabulary comes from the captions.
    """
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    torch.manual_seed(seed)
    tokenizer = _tokenizer([scene.caption for scene in scenes])
    small = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
        projection_dim=64,
    )
    model = CLIPModel(config)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = CLIPProcessor(images, tokenizer)
    inputs = processor(
        text=[scene.caption for scene in scenes],
        images=[scene.rgb for scene in scenes],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=tokenizer.model_max_length,
    )

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(**{name: values[chosen] for name, values in inputs.items()}, return_loss=True).loss
        return value

    _fit(model, loss, len(scenes), steps, TEXT_BATCH, 1e-3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _fit(model: nn.Module, loss: Any, count: int, steps: int, batch: int, rate: float) -> None:
    """Train with AdamW on shuffled batches, with 10% warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for chosen in _batches(count, steps, batch):
        optimizer.zero_grad()
        loss(chosen).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _batches(count: int, steps: int, batch: int) -> Iterator[torch.Tensor]:
    order: NDArray[np.int64] = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(count).numpy()
        yield torch.from_numpy(order[:batch].copy())
        order = order[batch:]


def _tokenizer(captions: Sequence[str]) -> Any:
    """Return CLIP's tokenizer with byte pairs learned from these captions."""
    from transformers import CLIPTokenizer

    empty = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[], model_max_length=64)
    return empty.train_new_from_iterator([list(captions)], vocab_size=400)
