"""The columns of task `encode`: a pair as training reads it, float16 numbers as bytes, row by row of each array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.quality import SCORES
from pipelines.records import EncodedArrays, SampleResult

if TYPE_CHECKING:
    from pipelines.spec.job import JobSpec

ROW_GROUP_ROWS = 8  # FLUX at 512 x 512 pixels has 4.5 MB a pair, nearly all of it T5's states
ARRAYS = ("latents_rgb", "latents_depth", "text_states", "text_pooled")

ENCODED_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("source", pa.string()),
    pa.field("prompt", pa.string()),
    pa.field("height", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("tokens", pa.int32()),
    pa.field("text_tokens", pa.int32()),
    *(pa.field(name, pa.binary()) for name in ARRAYS),
    pa.field("encoders", pa.string()),
    pa.field("quality", pa.struct([(name, pa.float64()) for name in SCORES])),
    pa.field("model", pa.string()),
]
ENCODED_DESCRIPTIONS = {
    "tokens": "of the packed latents",
    "text_tokens": "of T5's states",
    "latents_rgb": "float16 (tokens, channels): the image's packed latents",
    "latents_depth": "float16 (tokens, channels): the relative disparity's packed latents",
    "text_states": "float16 (text_tokens, width): T5's states of the prompt",
    "text_pooled": "float16 (width): CLIP's pooled output of the prompt",
    "encoders": "SHA-256 over VAE, text encoders and tokenizers: training needs the same",
}


def encoded_row(result: SampleResult, spec: JobSpec) -> dict[str, Any]:
    """The row of an encoded pair."""
    found, sample = result.encoded, result.sample
    assert isinstance(found, EncodedArrays)
    arrays = (found.rgb, found.disparity, found.states, found.pooled)
    return {
        "id": sample.id,
        "source": sample.row.id,
        "prompt": sample.row.prompt,
        "height": found.height,
        "width": found.width,
        "tokens": found.rgb.shape[0],
        "text_tokens": found.states.shape[0],
        **{name: array.astype("<f2").tobytes() for name, array in zip(ARRAYS, arrays, strict=True)},
        "encoders": found.encoders,
        "quality": None,
        "model": spec.model.name,
    }
