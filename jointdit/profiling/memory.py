"""Memory that a worker needs: weights as loaded, and the largest set of activations.

It counts tensors and cuDNN's workspace. RESERVED_BYTES is a reserve for the rest: the CUDA context, cuBLAS and
fragmentation.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from jointdit.loading.checkpoint_files import FilePath, folder_tensor_shapes, tensor_shapes, wrap_load_errors
from jointdit.loading.offload import Offload
from jointdit.loading.quantization import Quantization
from jointdit.model.transformer import JointDiTTransformer2DModel, is_adapter, ranks_in_file
from jointdit.profiling import RESERVED_BYTES
from jointdit.profiling.activations import Architecture, Call, activation_bytes

Shapes = Mapping[str, tuple[int, ...]]
STAGES = {
    "text": ("text_encoder", "text_encoder_2"),
    "encode": ("vae",),
    "denoise": ("transformer",),
    "decode": ("vae",),
}
# Workspace of the convolutions as a share of the VAE's activations, when several images are decoded at once. At 512 px
# on an H100, PyTorch 2.11: 0.58 for 4 and for 8 images, none for one (`python -m jobs.tools.gpu_check`).
DECODE_WORKSPACE = 0.6
PREFETCHED = 2  # groups on the device at once: the one that computes, and the next one
NOT_LINEAR = re.compile(r"embed|shared\.|relative_attention_bias")  # two-dimensional weights that are tables
# T5's output projection of the MLP. It is float32 if the rest is float16. In transformers 5.23 torchao quantises it and
# bitsandbytes does not.
KEPT_BY_T5 = ".wo."


@dataclass(frozen=True)
class Model:
    """Configs and tensor shapes of a checkpoint. The transformer's tensors include the adapter's."""

    architecture: Architecture
    tensors: Mapping[str, Shapes]  # component -> names and shapes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors on the device."""

    weights: Mapping[str, int]  # by component; `adapter` apart from `transformer`
    activations: Mapping[str, int]  # by stage
    peak: int
    peak_stage: str

    @property
    def needed(self) -> int:
        """Bytes that the device must have: the peak plus a reserve for non-tensor memory."""
        return self.peak + RESERVED_BYTES


def read_model(folder: FilePath, adapter: FilePath | None = None) -> Model:
    """Read the configs and headers of a pipeline's folder. Raises ModelError if they are missing or damaged."""
    folder = Path(folder)
    names = ("transformer", "vae", "text_encoder", "text_encoder_2")
    tensors = {name: dict(folder_tensor_shapes(folder / name)) for name in names}
    with wrap_load_errors(f"{folder}: its configurations do not describe a JointDiT or FLUX pipeline"):
        index = json.loads((folder / "model_index.json").read_text())
        network = dict(JointDiTTransformer2DModel.load_config(folder / "transformer"))
        if adapter is not None:
            tensors["transformer"] |= {_in_its_block(name): shape for name, shape in tensor_shapes(adapter).items()}
            network["lora_ranks"] = ranks_in_file(adapter, network)
        network = {name: value for name, value in network.items() if not name.startswith("_")}
        architecture = Architecture(
            network,
            {name: v for name, v in AutoencoderKL.load_config(folder / "vae").items() if not name.startswith("_")},
            CLIPTextConfig.from_pretrained(folder / "text_encoder"),
            T5Config.from_pretrained(folder / "text_encoder_2"),
            index.get("max_sequence_length", 512),
        )
    return Model(architecture, tensors)


@lru_cache(maxsize=2)
def flux_model(guidance_embeds: bool = True) -> Model:
    """Return FLUX.1-dev (or schnell, without guidance embedding) with JointDiT's adapter, T5-XXL and CLIP-L."""
    clip = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    t5 = T5Config(
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        use_cache=False,
        is_encoder_decoder=False,
    )
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 16,
        "sample_size": 1024,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    network: dict[str, Any] = {"guidance_embeds": guidance_embeds}
    with torch.device("meta"):
        transformer = JointDiTTransformer2DModel(**network)
        parts = {
            "transformer": transformer,
            "vae": AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(clip),
            "text_encoder_2": T5EncoderModel(t5),
        }
    tensors = {name: {n: tuple(p.shape) for n, p in part.named_parameters()} for name, part in parts.items()}
    network = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    vae = {name: value for name, value in parts["vae"].config.items() if not name.startswith("_")}
    return Model(Architecture(network, vae, clip, t5, 512), tensors)


def estimate_memory(
    model: Model,
    call: Call,
    quantization: Quantization | None = None,
    offload: Offload | None = None,
    activations: Mapping[str, int] | None = None,
) -> MemoryEstimate:
    """Estimate the bytes of weights, of the activations of one call, and the peak on the device.

    activations: `activation_bytes` of the same call, to avoid repeating it for several estimates.
    """
    sizes = {name: _tensor_bytes(name, shapes, call.dtype, quantization) for name, shapes in model.tensors.items()}
    weights = {name: sum(each.values()) for name, each in sizes.items()}
    weights["adapter"] = sum(size for name, size in sizes["transformer"].items() if is_adapter(name))
    weights["transformer"] -= weights["adapter"]
    activations = with_workspace(
        activation_bytes(model.architecture, call) if activations is None else activations, call
    )
    if quantization is not None:
        for name in quantization.components:
            linears = [s for n, s in model.tensors[name].items() if _is_quantised(name, n, s, quantization)]
            unpacked = max((math.prod(shape) for shape in linears), default=0) * call.dtype.itemsize
            activations["denoise" if name == "transformer" else "text"] += unpacked  # one weight at a time
    together = {stage: _on_device(stage, sizes, offload) + size for stage, size in activations.items()}
    worst = max(together, key=lambda stage: together[stage])
    return MemoryEstimate(weights, activations, together[worst], worst)


def with_workspace(activations: Mapping[str, int], call: Call) -> dict[str, int]:
    """Add the workspace of a GPU's convolutions to the bytes of each stage."""
    several = call.batch > 1 and not call.vae_slicing
    workspace = {"decode": int(DECODE_WORKSPACE * activations["decode"])} if several else {}
    return {stage: size + workspace.get(stage, 0) for stage, size in activations.items()}


def _in_its_block(name: str) -> str:
    """Rename a published adapter's tensor, so that its name shows its block and that it belongs to the adapter."""
    match = re.match(r"(double|single)_blocks\.(\d+)\.", name)
    kind = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
    return f"{kind[match[1]]}.{match[2]}.lora_.{name}" if match else f"inputs.lora_.{name}"


def _tensor_bytes(
    component: str, shapes: Shapes, dtype: torch.dtype, quantization: Quantization | None
) -> dict[str, int]:
    """Return the bytes of each tensor of the loaded component."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name.endswith("embed_tokens.weight") and "shared.weight" in shapes:
            continue  # another name of shared.weight, T5's token table
        if quantization is not None and _is_quantised(component, name, shape, quantization):
            sizes[name] = quantization.linear_bytes(*shape)
        else:
            wide = component == "vae" or (KEPT_BY_T5 in name and dtype == torch.float16)
            sizes[name] = math.prod(shape) * (4 if wide else dtype.itemsize)
    return sizes


def _is_quantised(component: str, name: str, shape: tuple[int, ...], quantization: Quantization) -> bool:
    """Whether a tensor is the weight of a quantised Linear."""
    if component not in quantization.components or len(shape) != 2 or not name.endswith("weight"):
        return False
    if component == "transformer":
        return not is_adapter(name)
    is_kept = KEPT_BY_T5 in name and quantization.backend != "torchao"
    return not is_kept and not NOT_LINEAR.search(name)


def _on_device(stage: str, sizes: Mapping[str, Mapping[str, int]], offload: Offload | None) -> int:
    """Return the bytes of weights on the device during a stage."""
    if offload is None:
        return sum(sum(each.values()) for each in sizes.values())
    if offload == "model":
        return max(sum(sizes[name].values()) for name in STAGES[stage])
    if offload == "group" and stage == "denoise":
        blocks: Counter[str] = Counter()
        for name, size in sizes["transformer"].items():
            match = re.match(r"(?:single_)?transformer_blocks\.\d+\.", name)
            blocks[match.group() if match else ""] += size
        rest = blocks.pop("", 0)
        return rest + PREFETCHED * max(blocks.values(), default=0)
    layers: Counter[str] = Counter()
    for component in STAGES[stage]:
        for name, size in sizes[component].items():
            layers[f"{component}.{name.rpartition('.')[0]}"] += size
    return (PREFETCHED if offload == "group" else 1) * max(layers.values())
