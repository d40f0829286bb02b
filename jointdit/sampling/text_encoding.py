"""Prompts to embeddings: T5's token states and CLIP's pooled output, and a cache of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from jointdit.errors import InputError

EMPTY_PROMPT = " "  # the authors' prompt for depth estimation and for dropped captions in training
TEXT_COMPONENTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

Embedding = tuple[torch.Tensor, torch.Tensor]  # (T, D) and (P,)


class TextCache:
    """The embeddings of the last `size` texts, and of the empty prompt. Size 0 keeps nothing."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self._kept: dict[tuple[int, str], Embedding] = {}  # in order of use

    def get(self, keys: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Embedding]:
        """Return the embeddings that are kept of these texts, each with its length in tokens."""
        return {key: self._kept[key] for key in keys if key in self._kept}

    def add(self, embeddings: dict[tuple[int, str], Embedding]) -> None:
        """Add embeddings, and remove the least recently used."""
        if not self.size:
            return
        for key, (states, pooled) in embeddings.items():
            kept = self._kept.pop(key, None)
            # Copied, because a row of a batch would keep the whole batch in memory.
            self._kept[key] = kept or (states.clone(), pooled.clone())
        others = [key for key in self._kept if key[1] != EMPTY_PROMPT]
        for key in others[: max(0, len(others) - self.size)]:
            del self._kept[key]


def encode_texts(pipe: Any, prompts: Sequence[str | None], length: int, cache: TextCache) -> Embedding:
    """Return T5's states (B, T, D) and CLIP's pooled output (B, P) of prompts, on the pipeline's device.

    Each text is padded or truncated to a fixed length, without a mask. None and "" become one space. Repeated texts are
    encoded once. length: of T5, in tokens.
    """
    keys = [(length, text or EMPTY_PROMPT) for text in prompts]
    unique = list(dict.fromkeys(keys))
    embeddings = cache.get(unique)
    if missing := [key for key in unique if key not in embeddings]:
        for name in TEXT_COMPONENTS:
            if getattr(pipe, name) is None:
                raise InputError(
                    f"the pipeline has no {name}: give prompt_embeds and pooled_prompt_embeds, which encode_prompt "
                    "returns where the text encoders are loaded."
                )
        texts = [text for _, text in missing]
        clip_length = min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings)
        device = pipe._execution_device
        pooled = pipe.text_encoder(_token_ids(pipe.tokenizer, texts, clip_length).to(device)).pooler_output
        states = pipe.text_encoder_2(_token_ids(pipe.tokenizer_2, texts, length).to(device))[0]
        embeddings |= dict(zip(missing, zip(states, pooled, strict=True), strict=True))
    cache.add({key: embeddings[key] for key in unique})
    states, pooled = (torch.stack(rows) for rows in zip(*(embeddings[key] for key in keys), strict=True))
    return states.to(pipe._execution_device), pooled.to(pipe._execution_device)


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> torch.Tensor:
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: torch.Tensor = tokens.input_ids
    return ids
