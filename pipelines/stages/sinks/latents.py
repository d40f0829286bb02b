"""The columns of task `encode`: training pairs as float16 numbers in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.quality import SCORES
from pipelines.records import EncodedArrays, SampleResult

if TYPE_CHECKING:
    from pipelines.spec.job import JobSpec

ROW_GROUP_ROWS = 8  # at 512 x 512 pixels FLUX has 4.5 MB per pair, mostly T5 states
ARRAYS = ("latents_rgb", "latents_depth", "text_states", "text_pooled")
ROW_COUNTS = {"latents_rgb": "tokens", "latents_depth": "tokens", "text_states": "text_tokens"}  # array -> its length

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
    "tokens": "number of packed latents",
    "text_tokens": "number of T5 states",
    "latents_rgb": "float16 (tokens, channels): packed latents of the image",
    "latents_depth": "float16 (tokens, channels): packed latents of the relative disparity",
    "text_states": "float16 (text_tokens, width): T5 states of the prompt",
    "text_pooled": "float16 (width): CLIP's pooled output of the prompt",
    "encoders": "SHA-256 over VAE, text encoders and tokenizers: training needs the same ones",
}


def encoded_row(result: SampleResult, spec: JobSpec) -> dict[str, Any]:
    """Return the row of an encoded pair."""
    encoded, sample = result.encoded, result.sample
    assert isinstance(encoded, EncodedArrays)
    arrays = (encoded.rgb, encoded.disparity, encoded.states, encoded.pooled)
    return {
        "id": sample.id,
        "source": sample.row.id,
        "prompt": sample.row.prompt,
        "height": encoded.height,
        "width": encoded.width,
        "tokens": encoded.rgb.shape[0],
        "text_tokens": encoded.states.shape[0],
        **{name: array.astype("<f2").tobytes() for name, array in zip(ARRAYS, arrays, strict=True)},
        "encoders": encoded.encoders,
        "quality": None,
        "model": spec.model.name,
    }
