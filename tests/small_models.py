"""Small random checkpoints of the real classes of transformers, saved with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_depth_anything(
    folder: Path, seed: int = 0, size: int = 28, safetensors: bool = True, **changes: Any
) -> tuple[Any, Any]:
    """Save a Depth-Anything-V2 of a few thousand weights for `size` pixels; return model and processor."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessorPil

    torch.manual_seed(seed)
    backbone = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=24,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        initializer_range=0.5,  # with the default 0.02 the depth map varies by 1e-7 only
        **changes,
    )
    model = DepthAnythingForDepthEstimation(config).eval()
    if safetensors:
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    processor = DPTImageProcessorPil(
        size={"height": size, "width": size}, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3
    )
    processor.save_pretrained(folder)
    return model, processor


def save_dpt(folder: Path) -> Path:
    """Save a DPT (MiDaS) for 32 x 32 pixels; return its folder."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

    torch.manual_seed(1)
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Save a CLIP of 24 tokens and 32 x 32 pixels whose tokens are letters; return its folder."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(2)
    config = CLIPConfig(
        text_config=small | text | {"pad_token_id": 1},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        model.text_projection.weight.neg_()  # these random weights would give opposite embeddings otherwise
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_captioner(folder: Path) -> Path:
    """Save a BLIP of a few thousand weights with a vocabulary of some words; return its folder."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "cube", "on", "the", "floor"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **small,
            "vocab_size": len(words),
            "encoder_hidden_size": 16,
            "max_position_embeddings": 32,
            "bos_token_id": 5,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
            "projection_dim": 16,
        },
        vision_config={**small, "image_size": 32, "patch_size": 16, "projection_dim": 16},
        projection_dim=16,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder
