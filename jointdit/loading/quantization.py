"""Quantisation of weights, by the names of diffusers' PipelineQuantizationConfig.

The weights of Linears are quantised while they are loaded. The adapter (LoRA and joint Linears), norms, embeddings and
the VAE are not quantised. JointDiT's layers only call the base's Linears, so both halves use the quantised Linear, and
the depth LoRA adds to its result in full precision.

The extra `quantization` installs the libraries. torchao runs on CPUs and GPUs. diffusers loads bitsandbytes on GPUs
only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

from jointdit.errors import ModelError

if TYPE_CHECKING:
    import torch

Backend = Literal["torchao", "bitsandbytes_4bit", "bitsandbytes_8bit"]
Component = Literal["transformer", "text_encoder", "text_encoder_2"]
TorchaoType = Literal[
    "Int8WeightOnlyConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Float8WeightOnlyConfig",
    "Float8DynamicActivationFloat8WeightConfig",
]
LIBRARIES: Mapping[str, str] = {
    "torchao": "torchao",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
}
SETTINGS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {  # backend -> setting -> its values, default first
    "torchao": {"quant_type": get_args(TorchaoType)},
    "bitsandbytes_4bit": {"bnb_4bit_quant_type": ("nf4", "fp4"), "bnb_4bit_use_double_quant": (False, True)},
    "bitsandbytes_8bit": {},
}
ADAPTER_MODULES = ("lora_A", "lora_B", "joint_proj")
BLOCK_4BIT = 64  # weights per absolute maximum in float32 (bitsandbytes' blocksize)
BLOCK_MAXIMA = 256  # maxima per float32, if the maxima are quantised again to one byte each


@dataclass(frozen=True)
class Quantization:
    """Which components of the pipeline are quantised, and how.

    backend: diffusers' name. settings: of the backend, see SETTINGS; missing ones have their default. Raises
    ModelError for a setting or value that the backend does not have.
    """

    backend: Backend
    settings: Mapping[str, Any] = field(default_factory=dict)
    components: tuple[Component, ...] = ("transformer", "text_encoder_2")

    def __post_init__(self) -> None:
        known = SETTINGS[self.backend]
        for name, value in self.settings.items():
            if name not in known:
                choices = f"use {', '.join(known)}" if known else "it has none"
                raise ModelError(f"quant_kwargs of {self.backend} has no {name!r}: {choices}.")
            if not any(value is choice or value == choice for choice in known[name]):
                choices = ", ".join(str(choice) for choice in known[name])
                raise ModelError(f"quant_kwargs.{name} of {self.backend} is {value!r}: use one of {choices}.")
        if not self.components:
            raise ModelError("components_to_quantize is empty: name at least one, or leave quantization out.")

    def setting(self, name: str) -> Any:
        """Return the value of a setting, or its default."""
        return self.settings.get(name, SETTINGS[self.backend][name][0])

    def config(self, component: Component, dtype: torch.dtype) -> Any:
        """Return the quantisation config for the loader of a component, or None if it is not quantised.

        It is diffusers' class for the transformer and transformers' class for the text encoders. dtype: of the
        computation. Raises ModelError if the library is missing, or bitsandbytes has no GPU.
        """
        if component not in self.components:
            return None
        library = LIBRARIES[self.backend]
        if find_spec(library) is None:
            raise ModelError(f"quantization by {self.backend} needs {library}: pip install 'jointdit[quantization]'.")
        import diffusers
        import torch
        import transformers

        home: Any = diffusers if component == "transformer" else transformers
        kept = list(ADAPTER_MODULES) if component == "transformer" else None
        if self.backend == "torchao":
            import torchao.quantization

            return home.TorchAoConfig(
                getattr(torchao.quantization, self.setting("quant_type"))(), modules_to_not_convert=kept
            )
        if not torch.cuda.is_available():
            raise ModelError(
                f"quantization by {self.backend} needs a GPU, and there is none: use torchao, or no quantization."
            )
        if self.backend == "bitsandbytes_8bit":
            # No outlier columns: they are selected over the whole batch, so a sample would depend on the others.
            return home.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)
        return home.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.setting("bnb_4bit_quant_type"),
            bnb_4bit_use_double_quant=self.setting("bnb_4bit_use_double_quant"),
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )

    def linear_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a quantised Linear weight (rows, columns), including its scales."""
        count = rows * columns
        if self.backend != "bitsandbytes_4bit":
            return count + 4 * rows  # one byte per weight, one float32 per row
        blocks = math.ceil(count / BLOCK_4BIT)
        if self.setting("bnb_4bit_use_double_quant"):
            return count // 2 + blocks + 4 * math.ceil(blocks / BLOCK_MAXIMA)
        return count // 2 + 4 * blocks
