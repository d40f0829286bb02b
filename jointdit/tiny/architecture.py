"""The networks and tokenizers of the tiny checkpoint: the real classes at small size.

The autoencoder downsamples by 8 and has 16 channels, as FLUX's, so 128 x 128 pixels are 64 tokens of 64 channels. Its
1x1 `quant_conv` and `post_quant_conv` (FLUX's has none) standardise the latents per channel, so scale is 1 and shift 0.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from jointdit.scenes.vocabulary import (
    COLOURS,
    COLUMNS,
    COUNTS,
    FLOOR_TEXTURES,
    MATERIALS,
    OBJECT_TEXTURES,
    RELATIONS,
    SHAPES,
    SIZES,
    SKY_TEXTURES,
    WALL_TEXTURES,
)

IMAGE_SIZE = 128
MAX_SEQUENCE_LENGTH = 40  # T5 tokens; the longest caption has 37, plus the full stop and the end token
CLIP_LENGTH = 48
CAPTION_WORDS: tuple[str, ...] = (
    *("a", "an", "and", "with", "on", "in", "front", "of", "the", "floor", "wall"),
    *("ground", "sky", "under", "above", "behind", "it", "soft", "light"),
)


def vocabulary() -> list[str]:
    """Return each word of the scenes' captions once, in a fixed order."""
    groups: tuple[Iterable[str], ...] = (
        CAPTION_WORDS,
        COLOURS,
        SHAPES,
        (f"{shape}s" for shape in SHAPES),
        SIZES,
        COLUMNS,
        COUNTS.values(),
        (word for relation in RELATIONS for word in relation.split()),
        MATERIALS,
        OBJECT_TEXTURES,
        FLOOR_TEXTURES,
        WALL_TEXTURES,
        SKY_TEXTURES,
    )
    return list(dict.fromkeys(word for group in groups for word in group))


def clip_tokenizer() -> CLIPTokenizer:
    """Build a byte-level BPE with one token per vocabulary word; other words are split into bytes.

    As in CLIP each byte has two tokens, inside a word and at its end ("x</w>"). Otherwise the last letter of an unknown
    word would become the unknown token, which is the end token, and the pooled output would be read there.
    """
    letters = sorted(ByteLevel.alphabet())
    merges = bpe_merges(vocabulary())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge) for merge in merges]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def bpe_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the merges that make each word one token: the most frequent pair first, ties in alphabetical order.

    The trainer of `tokenizers` breaks ties by hash order, so its token ids differ between processes.
    """
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in spelt for pair in itertools.pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelt = [_merged(word, best) for word in spelt]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def t5_tokenizer() -> T5Tokenizer:
    """Build a unigram tokenizer with one token per vocabulary word; other words are split into letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -2.0) for word in vocabulary()]
    pieces += [(f"▁{word.capitalize()}", -2.0) for word in vocabulary()]  # some captions are written as sentences
    pieces += [(chr(code), -10.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_SEQUENCE_LENGTH)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a CLIP text encoder of width 64; its pooled output conditions the modulation."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        projection_dim=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Build a T5 encoder of width 128; its hidden states are the transformer's text tokens."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def build_vae() -> AutoencoderKL:
    """Build an autoencoder like FLUX's (16 latent channels, downsampling 8) with widths 16 to 64."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
        use_quant_conv=True,
        use_post_quant_conv=True,
        mid_block_add_attention=True,
    )


def build_flux() -> FluxTransformer2DModel:
    """Build a FLUX of width 192: 2 double and 4 single blocks, 6 heads of 32. Stage 3 adds guidance."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


DEPTH_GUIDANCE = 1.0
"""Guidance of depth estimation: the value of training was best on held-out scenes (see the card)."""

LORA_RANKS = {"vector_in.in_layer": 64, "vector_in.out_layer": 128, "txt_in": 128, "blocks": 64}
"""Ranks of the tiny adapter: 64 in the blocks as in the paper, less than its 512 and 1024 at the inputs."""
