"""Encode captions with CLIP and T5, for stages with trained or frozen text encoders."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from jointdit.sampling.text_encoding import EMPTY_PROMPT

LEFT_OR_RIGHT = re.compile(r"\b(left|right)\b")


class CaptionEncoder:
    """Tokenises all captions once, and encodes rows by index.

    The encodings are those of sampling: CLIP's pooled output, and T5's hidden states padded to the full length without
    a mask. All tensors are on the encoders' device.
    """

    def __init__(
        self,
        captions: Sequence[str],
        clip_tokenizer: CLIPTokenizer,
        clip: CLIPTextModel,
        t5_tokenizer: T5Tokenizer,
        t5: T5EncoderModel,
    ) -> None:
        texts = [EMPTY_PROMPT, *captions, *(sentence(caption) for caption in captions)]
        self.count = len(captions)
        self.clip, self.t5 = clip, t5
        self.clip_ids = _ids(clip_tokenizer, texts).to(clip.device)
        self.t5_ids = _ids(t5_tokenizer, texts).to(t5.device)

    def encode(
        self, index: torch.Tensor, drop: float | torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T5 states (B, T, D) and CLIP pooled output (B, P) of captions[index] (B,).

        drop: share of captions that are replaced by the empty prompt; a tensor (B,) sets it per caption. A quarter of
        the captions is written as sentences, with a capital and a full stop, as users write them.
        """
        as_sentence = torch.rand(len(index), generator=generator, device=index.device) < 0.25
        rows = 1 + index + as_sentence * self.count
        rows = torch.where(torch.rand(len(index), generator=generator, device=index.device) < drop, 0, rows)
        states = self.t5(self.t5_ids[rows]).last_hidden_state
        pooled = self.clip(self.clip_ids[rows]).pooler_output
        return states, pooled


def mirrored(caption: str) -> str:
    """Return the caption of the mirrored image: left and right are swapped."""
    return LEFT_OR_RIGHT.sub(lambda word: "right" if word[0] == "left" else "left", caption)


def sentence(caption: str) -> str:
    """Return the caption with a capital and a full stop."""
    return caption[0].upper() + caption[1:] + "."


def _ids(tokenizer: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> torch.Tensor:
    encoded = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = encoded.input_ids
    return ids
