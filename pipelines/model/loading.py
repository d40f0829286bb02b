"""Load the weights of a job on this node. The driver pins them (identity.py); a worker loads those files alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jointdit.errors import ModelError
from pipelines.model.weights.node_cache import local_path
from pipelines.model.weights.pins import Pin
from pipelines.spec.job import JobSpec, ModelSpec, PrepareSpec

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
from pipelines.model.identity import computed_on, pin_model, weight_names

TEXTS_KEPT = 16  # of a worker: a row's samples lie together; 64 MB of T5-XXL's states


def local_spec(spec: JobSpec, pins: Sequence[Pin]) -> JobSpec:
    """The spec with its weights' places on this node, where what is missing is downloaded and checked.

    Raises:
        ModelError: what is here is not what was pinned. TransientError, StoreError: it cannot be had now.
    """
    if isinstance(spec, PrepareSpec):
        places = {each.field: str(local_path(each)) for each in pins}
        names = {field: places.get(field, name) for field, name in weight_names(spec).items()}
        captioner = names.pop("captioner", None)
        return spec.model_copy(update={"teachers": tuple(names.values()), "captioner": captioner})
    return spec.model_copy(update={"model": local_model(spec.model, pins)})


def local_model(model: ModelSpec, pins: Sequence[Pin]) -> ModelSpec:
    """As `local_spec`, of the section `model` alone."""
    places: dict[str, Any] = {}
    for each in pins:
        path = local_path(each)
        if each.value != "tiny":
            places[each.field.removeprefix("model.")] = str(path)
    return model.model_copy(update={**places, "revision": None} if places else {})


def load_pipeline(model: ModelSpec, device: str) -> JointDiTPipeline:
    """Load the model on a device ("cpu", "cuda"), or beside it where the spec offloads it; downloaded if need be.

    Raises:
        ModelError: a checkpoint that does not fit, or a machine that can not compile its blocks.
    """
    import torch

    from jointdit import JointDiTPipeline
    from jointdit.loading.offload import place

    model = computed_on(device, local_model(model, pin_model(model, {}, remote_only=True)))
    options: dict[str, Any] = {"torch_dtype": getattr(torch, model.dtype)}
    if model.quantization is not None:
        options["quantization"] = model.quantization.wanted()
    if model.offload is None and device != "cpu":
        options["device"] = device  # a CPU's stay mapped from their files
    pipe = JointDiTPipeline.from_pretrained(
        model.name, base=model.base, adapter=model.adapter, components=model.components, **options
    )
    pipe.set_progress_bar_config(disable=True)
    if model.vae_tiling:
        pipe.vae.enable_tiling()
    if model.vae_slicing:
        pipe.vae.enable_slicing()
    place(pipe, device, model.offload)
    pipe.keep_texts(TEXTS_KEPT)
    if model.compile:
        _check_compiler(device)
        # Blocks alone: two kinds, each compiled once, in place of a program for the whole network; and that would
        # not round the noise levels to a lower precision as the network does, which moves its output by a sixth of
        # its deviation (measured under autocast to bfloat16).
        pipe.transformer.compile_repeated_blocks()
    return pipe


def _check_compiler(device: str) -> None:
    """Compile one addition: a missing compiler would otherwise come up with the first batch, as the rows' fault."""
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.compile is true, and torch.compile does not work on {device} here ({reason}): install a C++ "
            "compiler (and Triton for a GPU), or set it to false."
        ) from error
