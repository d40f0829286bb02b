"""Quantised weights, by the names of diffusers' PipelineQuantizationConfig.

Weights of Linears are quantised as they are loaded; the adapter (LoRA and joint Linears), norms, embeddings and the VAE
stay as they are. JointDiT's layers only call the base's Linears, so a quantised one serves both halves and the depth
LoRA adds to its result in full precision.

The libraries are the extra `quantization`. torchao runs on CPUs too; bitsandbytes' kernels do, but the loader of
diffusers takes them on GPUs only.
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
SETTINGS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {  # a backend's settings and what each may be, default first
    "torchao": {"quant_type": get_args(TorchaoType)},
    "bitsandbytes_4bit": {"bnb_4bit_quant_type": ("nf4", "fp4"), "bnb_4bit_use_double_quant": (False, True)},
    "bitsandbytes_8bit": {},
}
ADAPTER_MODULES = ("lora_A", "lora_B", "joint_proj")
BLOCK_4BIT = 64  # weights that share one absolute maximum, in float32 (bitsandbytes' blocksize)
BLOCK_MAXIMA = 256  # of those maxima share one float32 where they are quantised again, to a byte


@dataclass(frozen=True)
class Quantization:
    """How which components are quantised.

    backend: as diffusers calls it. settings: of the backend, see SETTINGS; what is left out has its default.
    components: of the pipeline. Raises ModelError for a setting or value that the backend does not have.
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
        """A setting's value, given or default."""
        return self.settings.get(name, SETTINGS[self.backend][name][0])

    def config(self, component: Component, dtype: torch.dtype) -> Any:
        """The configuration that the loader of a component takes, or None where it stays as it is.

        The transformer's is of diffusers, the text encoders' of transformers. dtype: of what is computed. Raises
        ModelError where the library is missing, or is bitsandbytes and there is no GPU.
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
                f"quantization by {self.backend} needs a GPU, and there is none: use torchao, or leave it out."
            )
        if self.backend == "bitsandbytes_8bit":
            # Without the threshold's outlier columns, which are found over the whole batch: with them a sample's
            # numbers depend on its neighbours.
            return home.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)
        return home.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.setting("bnb_4bit_quant_type"),
            bnb_4bit_use_double_quant=self.setting("bnb_4bit_use_double_quant"),
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )

    def linear_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a Linear's weight (rows, columns) after it was quantised, its scales included."""
        count = rows * columns
        if self.backend != "bitsandbytes_4bit":
            return count + 4 * rows  # a byte a weight, a float32 a row
        blocks = math.ceil(count / BLOCK_4BIT)
        if self.setting("bnb_4bit_use_double_quant"):
            return count // 2 + blocks + 4 * math.ceil(blocks / BLOCK_MAXIMA)
        return count // 2 + 4 * blocks
