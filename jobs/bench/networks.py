"""Networks and inputs of the model's benches: JointDiT and the plain FLUX that it is compared with.

Width 512, one double and two single blocks (FLUX has 19 and 38), 64 text tokens, LoRA rank 64 in every layer. The
text is short and the width small, so what JointDiT adds weighs more than in FLUX.1: attention grows with tokens over
width, and a rank of 64 is an eighth of the width here.
"""

from __future__ import annotations

import copy
import os
import weakref
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from jobs.bench.frame import Spread
from jointdit.errors import PermanentError
from jointdit.latents import image_position_ids, text_position_ids
from jointdit.transformer import JointDiTTransformer2DModel

CONFIG: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 4,
    "joint_attention_dim": 512,
    "pooled_projection_dim": 128,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
LORA_RANK = 64
TEXT_TOKENS = 64
TOLERANCE = 1e-4  # of outputs of about 1, float32


def width() -> int:
    """Of the networks."""
    return int(CONFIG["attention_head_dim"] * CONFIG["num_attention_heads"])


def use_all_cores(quick: bool = False) -> int:
    """Let PyTorch use every core this process may run on, unless it is to be quick; returns the number of threads."""
    if quick:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    return cores


def networks() -> tuple[JointDiTTransformer2DModel, FluxTransformer2DModel]:
    """JointDiT with a fresh adapter, which computes the base network in each half, and the same base alone."""
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(**CONFIG).eval()
    return JointDiTTransformer2DModel.from_flux(copy.deepcopy(flux), lora_ranks=LORA_RANK), flux


def fill_adapter(model: JointDiTTransformer2DModel) -> None:
    """Give LoRA B and joint Linears values, as a trained adapter has."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def inputs(pairs: int, image_tokens: int) -> dict[str, Any]:
    """Arguments of a forward of either network on 2 * pairs rows; image_tokens is a square number."""
    generator = torch.Generator().manual_seed(2)
    rows, side = 2 * pairs, round(image_tokens**0.5)
    text = torch.randn(pairs, TEXT_TOKENS, CONFIG["joint_attention_dim"], generator=generator)
    pooled = torch.randn(pairs, CONFIG["pooled_projection_dim"], generator=generator)
    return {
        "hidden_states": torch.randn(rows, image_tokens, CONFIG["in_channels"], generator=generator),
        "timestep": torch.full((rows,), 0.6),
        "guidance": torch.full((rows,), 3.5),
        "encoder_hidden_states": torch.cat([text, text]),
        "pooled_projections": torch.cat([pooled, pooled]),
        "img_ids": image_position_ids(side, side),
        "txt_ids": text_position_ids(TEXT_TOKENS),
    }


def check_equal(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference. Raises PermanentError where it is above the tolerance: the sides compute other things."""
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        raise PermanentError(f"{what} of the two sides differs by {difference:g}, more than {TOLERANCE}: mend it.")
    return difference


def scaled(spread: Spread, factor: float) -> Spread:
    """A spread in another unit."""
    return Spread(spread.median * factor, spread.low * factor, spread.high * factor, spread.count)


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made within it held at once, views and in-place results not counted again."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at the storages of its results."""
        kwargs = kwargs or {}
        before = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **kwargs)
        for x in tree_iter(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in before | self._known:
                self._take(x.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        self._known.add(name)
        self._held += size
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, name, size)

    def _release(self, name: int, size: int) -> None:
        self._known.discard(name)
        self._held -= size
