"""Check the GPU memory that a job's workers need.

`jointdit.profiling.memory` makes the estimate. It imports torch, which takes seconds, so it is imported only if a GPU
could be too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jointdit.errors import ModelError, SpecError
from jointdit.profiling import RESERVED_BYTES
from pipelines.model.identity import ModelIdentity
from pipelines.model.weights.local import checkpoint_folder
from pipelines.spec.job import EncodeSpec, JobSpec, PrepareSpec

if TYPE_CHECKING:
    from jointdit.profiling.memory import MemoryEstimate, Model

# Memory of any GPU in GB. A smaller bound needs no estimate, unless the spec gives the GPU's memory.
SMALL_GB = 8.0
# Activations of FLUX.1-dev in float32, by `jointdit.profiling.memory`: at most 4,980 bytes per pixel in decode, and 237
# MB per sample for the text tokens in denoise. Much smaller checkpoints are not wider.
BYTES_A_PIXEL, BYTES_A_SAMPLE = 6144, 256 << 20
ADVICE = "model.vae_slicing, model.offload or model.quantization"


@dataclass(frozen=True)
class MemoryNeed:
    """GPU memory of a worker. height, width: pixels."""

    estimate: MemoryEstimate
    scorers: int  # bytes of the models of scores
    batch_size: int
    height: int
    width: int
    is_assumed: bool  # the checkpoint is not on this machine, so FLUX.1-dev's architecture is assumed

    @property
    def bytes(self) -> int:
        """Total bytes, with the reserve for non-tensor memory."""
        return self.estimate.needed + self.scorers


@dataclass(frozen=True)
class MemoryBound:
    """Upper bound of the GPU memory of a worker with a small model."""

    bytes: int


def memory_shown(spec: JobSpec, model: ModelIdentity, scorers: int = 0) -> MemoryNeed | MemoryBound | None:
    """Check memory as `check_memory`, but return only a bound for a small model if the spec gives no GPU memory.

    Raises SpecError as `check_memory`.
    """
    if spec.resources.gpu_memory_gb is None and not isinstance(spec, EncodeSpec | PrepareSpec):
        weights = 2 * model.bytes + scorers  # 16 bits in the files, 32 at most in memory
        a_sample = BYTES_A_SAMPLE + BYTES_A_PIXEL * model.height * model.width
        bound = weights + spec.model.batch_size * a_sample + RESERVED_BYTES
        if bound <= SMALL_GB * 1e9:
            return MemoryBound(bound)
    return check_memory(spec, model, scorers)


def memory_need(spec: JobSpec, height: int, width: int, batch_size: int, scorers: int = 0) -> MemoryNeed | None:
    """Estimate the GPU memory of one worker; None for tasks that do not run the whole model.

    Raises:
        ModelError: configs or headers of a local checkpoint cannot be read.
    """
    if isinstance(spec, EncodeSpec | PrepareSpec):
        return None
    import torch

    from jointdit.profiling.activations import Call
    from jointdit.profiling.memory import estimate_memory

    model, is_assumed = _known(spec.model.base or spec.model.name or "", spec.model.adapter, spec.model.components)
    call = Call(
        spec.task,
        batch_size,
        height,
        width,
        getattr(torch, spec.model.dtype),
        condition_refresh=spec.model.condition_refresh,
        vae_tiling=spec.model.vae_tiling,
        vae_slicing=spec.model.vae_slicing,
    )
    quantization = spec.model.quantization.settings() if spec.model.quantization is not None else None
    estimate = estimate_memory(model, call, quantization, spec.model.offload)
    return MemoryNeed(estimate, scorers, batch_size, height, width, is_assumed)


def check_memory(spec: JobSpec, model: ModelIdentity, scorers: int = 0) -> MemoryNeed | None:
    """Estimate the GPU memory of one worker. Raises SpecError if `resources.gpu_memory_gb` is smaller."""
    need = memory_need(spec, model.height, model.width, spec.model.batch_size, scorers)
    if need is None or spec.resources.gpu_memory_gb is None:
        return need
    room = spec.resources.gpu_memory_gb * spec.resources.gpus_per_worker
    if need.bytes <= room * 1e9:
        return need
    batch, fits = need.batch_size, need
    while batch > 1 and fits.bytes > room * 1e9:
        batch //= 2
        fits = memory_need(spec, model.height, model.width, batch, scorers) or fits
    advice = f"model.batch_size: {batch} fits" if fits.bytes <= room * 1e9 else f"not even batch_size 1 fits: {ADVICE}"
    raise SpecError(f"resources.gpu_memory_gb gives a worker {room:g} GB, and {_numbers(need)}; {advice}.")


def check_device(spec: JobSpec, height: int, width: int, device: str) -> None:
    """On a worker, check that its GPU can hold the model and one sample. A batch that is too large is halved later.

    Raises:
        ModelError: the GPU is too small.
    """
    if not device.startswith("cuda"):
        return
    import torch

    room = torch.cuda.get_device_properties(device).total_memory * spec.resources.gpus_per_worker / 1e9
    need = memory_need(spec, height, width, 1)
    if need is not None and need.bytes > room * 1e9:
        raise ModelError(f"the worker's GPU has {room:.1f} GB for it, and {_numbers(need)}: use {ADVICE}.")


def _numbers(need: MemoryNeed) -> str:
    estimate = need.estimate
    weights = sum(estimate.weights.values()) + need.scorers
    return (
        f"a batch of {need.batch_size} at {need.height} x {need.width} needs {need.bytes / 1e9:.1f} GB (weights "
        f"{weights / 1e9:.1f} GB; activations of {estimate.peak_stage}, the largest stage, "
        f"{estimate.activations[estimate.peak_stage] / 1e9:.1f} GB)"
    )


@lru_cache(maxsize=4)
def _known(name: str, adapter: str | None, components: str | None) -> tuple[Model, bool]:
    """Read the model of a complete local checkpoint; (FLUX.1-dev, True) for others."""
    from jointdit.profiling.memory import flux_model, read_model

    folder = checkpoint_folder(name)
    is_here = folder.is_dir() and (adapter is None or Path(adapter).is_file())
    if not is_here or components is not None:
        return flux_model(), True
    return read_model(folder, adapter), False
