"""Small critics of the real classes of transformers, fitted to rendered scenes in minutes of one core.

A GLPN that gives metric depth, and a CLIP with a vocabulary of the scenes' captions. Saved as their authors save theirs
and loaded as any other by the filters. They know scenes and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jointdit.scenes import Scene

SIDE = 64  # pixels: what both work at
BATCH = 32
FARTHEST = 20  # metres that the GLPN can say


def fit_depth_critic(folder: Path, scenes: Sequence[Scene], steps: int, seed: int = 0) -> Path:
    """Fit a GLPN (Kim et al., arXiv 2201.07436) to pictures (SIDE, SIDE) and their metres; returns its folder.

    The loss is L1 of log depth; pictures are mirrored at random.
    """
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessorPil

    torch.manual_seed(seed)
    config = GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 96],
        num_attention_heads=[1, 2, 4, 4],
        drop_path_rate=0.0,
        decoder_hidden_size=16,
        max_depth=FARTHEST,
    )
    model = GLPNForDepthEstimation(config)
    processor = GLPNImageProcessorPil()
    pictures = torch.stack([processor(images=scene.rgb, return_tensors="pt")["pixel_values"][0] for scene in scenes])
    depths = torch.from_numpy(np.stack([scene.depth for scene in scenes]).astype(np.float32)).log()

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        mirrored = chosen[torch.rand(len(chosen)) < 0.5]
        kept = chosen[~torch.isin(chosen, mirrored)]
        rgb = torch.cat([pictures[kept], pictures[mirrored].flip(-1)])
        target = torch.cat([depths[kept], depths[mirrored].flip(-1)])
        found = model(pixel_values=rgb).predicted_depth
        return nn.functional.l1_loss(found.clamp(min=0.05).log(), target)

    _fit(model, loss, len(scenes), steps, 2e-3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def fit_text_critic(folder: Path, scenes: Sequence[Scene], steps: int, seed: int = 0) -> Path:
    """Fit a CLIP (Radford et al., arXiv 2103.00020) to pictures (SIDE, SIDE) and their captions; returns its folder.

    The loss is CLIP's own, over the pairs of a batch; the vocabulary is made of the captions.
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
        found: torch.Tensor = model(**{name: values[chosen] for name, values in inputs.items()}, return_loss=True).loss
        return found

    _fit(model, loss, len(scenes), steps, 1e-3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _fit(model: nn.Module, loss: Any, count: int, steps: int, rate: float) -> None:
    """AdamW with a warm-up of a tenth and a cosine, over shuffled batches of BATCH."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for chosen in _batches(count, steps):
        optimiser.zero_grad()
        loss(chosen).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


def _batches(count: int, steps: int) -> Iterator[torch.Tensor]:
    order: NDArray[np.int64] = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(count).numpy()
        yield torch.from_numpy(order[:BATCH].copy())
        order = order[BATCH:]


def _tokenizer(captions: Sequence[str]) -> Any:
    """CLIP's tokenizer, its pairs of bytes learnt from these captions."""
    from transformers import CLIPTokenizer

    fresh = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[], model_max_length=64)
    return fresh.train_new_from_iterator([list(captions)], vocab_size=400)
