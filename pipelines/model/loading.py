"""Load the weights of a job on this node: exactly the files that the driver has pinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jointdit.errors import ModelError
from pipelines.model.weights.node_cache import local_path
from pipelines.model.weights.pins import LORA_FIELD, Pin
from pipelines.spec.job import JobSpec, ModelSpec, PrepareSpec

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
from pipelines.model.fingerprint import RECIPE
from pipelines.model.identity import computed_on, pin_model, weight_names

TEXTS_KEPT = 16  # per worker, because samples of a row are consecutive; 64 MB of T5-XXL's states


def local_spec(spec: JobSpec, pins: Sequence[Pin]) -> JobSpec:
    """Return the spec with local paths of its weights; missing files are downloaded and checked.

    Raises:
        ModelError: local files differ from the pin.
        TransientError, StoreError: files cannot be downloaded now.
    """
    if isinstance(spec, PrepareSpec):
        places = {each.field: str(local_path(each)) for each in pins}
        names = {field: places.get(field, name) for field, name in weight_names(spec).items()}
        captioner = names.pop("captioner", None)
        return spec.model_copy(update={"teachers": tuple(names.values()), "captioner": captioner})
    return spec.model_copy(update={"model": local_model(spec.model, pins)})


def local_model(model: ModelSpec, pins: Sequence[Pin]) -> ModelSpec:
    """Return the section `model` with local paths, as `local_spec`."""
    places: dict[str, Any] = {}
    loras = list(model.base_loras)
    for each in pins:
        path = local_path(each)
        if each.field.startswith(LORA_FIELD):
            number = int(each.field.removeprefix(LORA_FIELD))
            loras[number] = loras[number].model_copy(update={"path": str(path)})
        elif each.value != "tiny":
            places[each.field.removeprefix("model.")] = str(path)
    if loras:
        places["base_loras"] = tuple(loras)
    return model.model_copy(update={**places, "revision": None} if places else {})


def load_pipeline(model: ModelSpec, device: str, recipe: int = RECIPE) -> JointDiTPipeline:
    """Load the model on a device ("cpu", "cuda"), with offload if the spec asks for it; download it if needed.

    recipe: of the output (fingerprint.py).

    Raises:
        ModelError: the checkpoint does not fit, or torch.compile does not work on this machine.
    """
    import torch

    from jointdit import JointDiTPipeline
    from jointdit.loading.offload import place
    from jointdit.sampling.solvers import named_scheduler

    model = computed_on(device, local_model(model, pin_model(model, {}, remote_only=True)))
    options: dict[str, Any] = {"torch_dtype": getattr(torch, model.dtype)}
    if model.quantization is not None:
        options["quantization"] = model.quantization.settings()
    if model.offload is None and device != "cpu":
        options["device"] = device  # on a CPU tensors stay memory-mapped
    if model.base_loras:
        options["base_loras"] = [(each.path, each.scale) for each in model.base_loras]
    pipe = JointDiTPipeline.from_pretrained(
        model.name, base=model.base, adapter=model.adapter, components=model.components, **options
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vae_allow_tf32 = recipe == 1
    pipe.scheduler = named_scheduler(model.scheduler, pipe.scheduler)
    if model.vae_tiling:
        pipe.vae.enable_tiling()
    if model.vae_slicing:
        pipe.vae.enable_slicing()
    place(pipe, device, model.offload)
    pipe.keep_texts(TEXTS_KEPT)
    if model.compile:
        _check_compiler(device)
        # Only the blocks, of which there are two kinds, each compiled once. Compiled as a whole, the network would not
        # round the noise levels to a lower precision, which changes its output by a sixth of its deviation (measured
        # under autocast to bfloat16).
        pipe.transformer.compile_repeated_blocks()
    return pipe


def _check_compiler(device: str) -> None:
    """Compile one addition, because a missing compiler would otherwise fail the rows of the first batch."""
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.compile is true, and torch.compile does not work on {device} ({reason}): install a C++ "
            "compiler (and Triton for a GPU), or set it to false."
        ) from error
