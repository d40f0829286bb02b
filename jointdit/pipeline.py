"""JointDiTPipeline: prompts, images and disparity maps in, RGB and relative disparity out.

Shapes: B samples, H x W pixels, N packed image tokens, T text tokens, C latent channels. All samples of a call have
the same size, a multiple of 16 pixels with FLUX's VAE. `processing_resolution` resizes other inputs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from jointdit.denoising import StepCallback, Task, denoising_steps
from jointdit.errors import InputError, ModelError
from jointdit.loading.base_loras import BaseLora
from jointdit.loading.base_network import COMPONENTS_ADVICE, is_single_file, load_base
from jointdit.loading.checkpoint_files import FilePath, device_map_for, load_component, load_tokenizer, wrap_load_errors
from jointdit.loading.network_errors import network_errors
from jointdit.loading.options import DOWNLOAD, read_options
from jointdit.loading.quantization import Quantization
from jointdit.loading.schedulers import load_scheduler
from jointdit.model.latents import image_position_ids, text_position_ids
from jointdit.model.refusals import LORA_ADVICE
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.profiling.stopwatch import Stopwatch, step_of
from jointdit.sampling.decoding import decode_output
from jointdit.sampling.inputs import CallArguments, Callback, Generators, OutputType
from jointdit.sampling.output import JointDiTOutput
from jointdit.sampling.solvers import default_scheduler, default_text_tokens
from jointdit.sampling.steps import GUIDANCE, PipelineSteps
from jointdit.sampling.text_encoding import TEXT_COMPONENTS

TINY_CHECKPOINT = Path(__file__).parent / "tiny" / "checkpoint"
_SETTINGS = ("default_height", "default_width", "max_sequence_length", "default_depth_guidance")
_COMPONENTS = ("transformer", "vae", *TEXT_COMPONENTS, "scheduler")
# Beside the weights of a saved pipeline, so that diffusers finds its class.
_CUSTOM_PIPELINE = """from jointdit import JointDiTPipeline

__all__ = ["JointDiTPipeline"]
"""


class JointDiTPipeline(PipelineSteps):
    """RGB and depth together (`joint`), depth of an image (`depth`), or an image of a depth map (`depth-to-image`).

    The components are those of diffusers' FluxPipeline: JointDiT's transformer, VAE, CLIP (pooled output) and T5 (token
    states) with their tokenizers, and a scheduler for flow matching, default that of the base. Components that a use
    does not need may be None: with `prompt_embeds` the text encoders, for `encode_prompt` the others. A checkpoint also
    stores `default_height` and `default_width` (pixels), `max_sequence_length` (T5 tokens) and `default_depth_guidance`
    (guidance scale of task depth).
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _optional_components = [*TEXT_COMPONENTS, "scheduler"]  # noqa: RUF012
    stopwatch: Stopwatch | None = None  # measures the time of each step, if set

    def __init__(
        self,
        transformer: JointDiTTransformer2DModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder_2: T5EncoderModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        scheduler: SchedulerMixin | None = None,
        default_height: int = 512,
        default_width: int = 512,
        max_sequence_length: int | None = None,
        default_depth_guidance: float = GUIDANCE,
    ) -> None:
        super().__init__()
        if scheduler is None:
            scheduler = default_scheduler(transformer is None or transformer.config.guidance_embeds)
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            scheduler=scheduler,
        )
        self.register_to_config(
            default_height=default_height,
            default_width=default_width,
            max_sequence_length=max_sequence_length or default_text_tokens(scheduler),
            default_depth_guidance=default_depth_guidance,
        )
        self._check_components()
        self.keep_texts(0)

    def _check_components(self) -> None:
        parts = {name: getattr(self, name) for name in ("transformer", "vae", "text_encoder", "text_encoder_2")}
        configs = {name: part.config for name, part in parts.items() if part is not None}
        if "transformer" not in configs:
            return
        network = configs.pop("transformer")
        for name, setting, times, needed in (
            ("vae", "latent_channels", 4, network.in_channels),
            ("text_encoder", "hidden_size", 1, network.pooled_projection_dim),
            ("text_encoder_2", "d_model", 1, network.joint_attention_dim),
        ):
            if name in configs and times * getattr(configs[name], setting) != needed:
                label = f"{name}.{setting}" + (f" * {times}" if times > 1 else "")
                raise ModelError(
                    f"{label} is {times * getattr(configs[name], setting)} but the transformer needs {needed}: combine "
                    "parts of one checkpoint."
                )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: FilePath | None = None,
        *,
        base: FilePath | None = None,
        adapter: FilePath | None = None,
        components: FilePath | None = None,
        base_loras: Sequence[BaseLora] = (),
        torch_dtype: torch.dtype | str | None = None,
        quantization: Quantization | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> JointDiTPipeline:
        """Load a JointDiT checkpoint, or a FLUX pipeline with a published adapter.

        Args:
            pretrained_model_name_or_path: "tiny", a folder written by save_pretrained, or a name on the Hugging Face
                hub.
            base: instead of a checkpoint, a FLUX.1 pipeline (dev, schnell, Krea or a fine-tune of the same
                architecture), folder or hub name. It may also be a single file in Black Forest Labs' layout, or the
                folder of a transformer; both need `components`.
            adapter: the published adapter for `base`, a local safetensors file.
            components: a FLUX pipeline that provides VAE, text encoders and tokenizers.
            base_loras: LoRAs of FLUX (styles, few steps) that are fused into the base before the adapter is put on:
                (path of a safetensors file, scale) each.
            torch_dtype: of the transformer and text encoders, default float32. The VAE always runs in float32,
                because the precision of far depth depends on it.
            quantization: how to quantise the transformer and text encoders while they are loaded.
            device: device of the loaded tensors, default the CPU.
            kwargs: components that replace the checkpoint's, None to leave them out; `variant` of the files; options
                of the hub download; `dtype` and `device_map` (one device), other names of torch_dtype and device.

        Raises:
            ModelError: files are missing, are not safetensors, or do not fit together, or an option is not supported.
        """
        options, parts = read_options(kwargs, (*_COMPONENTS, *_SETTINGS), torch_dtype, device)
        dtype, device = options.dtype, options.device
        if (pretrained_model_name_or_path is None) == (base is None) or (base is None) != (adapter is None):
            raise ModelError(
                "Give either the name of a JointDiT checkpoint, or both base= (a FLUX pipeline) and adapter=."
            )
        if base is None and components is not None:
            raise ModelError("components= needs base=, and a JointDiT checkpoint is complete: remove components=.")
        if base is None and base_loras:
            raise ModelError(
                "base_loras= needs base=, because the adapter is put on after them: give base= and adapter=."
            )
        if base is not None and is_single_file(base) and components is None:
            raise ModelError(f"{base}: a single file holds only the transformer, {COMPONENTS_ADVICE}.")
        whole = base if components is None else components
        folder = _checkpoint_folder(pretrained_model_name_or_path if whole is None else whole, parts)
        with wrap_load_errors(f"{folder / cls.config_name} is not valid JSON"):
            index = dict(json.loads((folder / cls.config_name).read_text()))
        left_out = {name: None for name in TEXT_COMPONENTS if name in index and index[name] == [None, None]}
        parts = {**{name: index[name] for name in _SETTINGS if name in index}, **left_out, **parts}

        def options_of(name: Any) -> dict[str, Any]:
            config = quantization.config(name, dtype) if quantization is not None else None
            return options.of_component(folder / name) | ({} if config is None else {"quantization_config": config})

        if "transformer" not in parts and base is None:
            parts["transformer"] = JointDiTTransformer2DModel.from_pretrained(
                folder / "transformer", dtype=dtype, **device_map_for(device), **options_of("transformer")
            )
        elif "transformer" not in parts:
            network = folder if components is None or base is None else base
            parts["transformer"] = load_base(
                network, adapter, folder, dtype, device, base_loras, **options_of("transformer")
            )
        for name, kind, part_dtype in (
            ("vae", AutoencoderKL, torch.float32),
            ("text_encoder", CLIPTextModel, dtype),
            ("text_encoder_2", T5EncoderModel, dtype),
        ):
            if name not in parts:
                parts[name] = load_component(kind, folder / name, part_dtype, device, **options_of(name))
        for name in ("tokenizer", "tokenizer_2"):
            if name not in parts:
                parts[name] = load_tokenizer(folder / name)
        if "scheduler" not in parts and components is None:
            parts["scheduler"] = load_scheduler(folder, index)
        return cls(**parts)

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a LoRA beside the adapter, which the network's layers would not call."""
        raise ModelError(f"load_lora_weights would have no effect. {LORA_ADVICE}")

    def save_pretrained(self, save_directory: FilePath, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save the pipeline as safetensors; kwargs are diffusers'.

        The file pipeline.py beside it makes `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
        trust_remote_code=True)` work where this package is installed. Raises ModelError for safe_serialization=False.
        """
        if not safe_serialization:
            raise ModelError("safe_serialization is False, and from_pretrained refuses pickled files: leave it out.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text(_CUSTOM_PIPELINE)
        super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str | None] | None = None,
        task: Task = "joint",
        *,
        image: Any = None,
        disparity: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        seeds: Sequence[int] | None = None,
        generator: Generators | None = None,
        latents: torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        output_uncertainty: bool = False,
        output_type: OutputType = "np",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        condition_refresh: int = 1,
        on_step: StepCallback | None = None,
        rgb_refresh: int | None = None,
    ) -> JointDiTOutput:
        """Generate samples: one for each prompt, image, map, seed or generator, whichever are several.

        Args:
            prompt: one for all samples or one per sample; None and "" are the empty prompt.
            task: "joint", "depth" or "depth-to-image".
            image: for task depth, one for all samples or one per sample, of one size: PIL images, uint8 (H, W, 3),
                floats in [0, 1], tensors (3, H, W) (see `pixels.read_images`).
            disparity: for task depth-to-image, (H, W) in [0, 1], 1 nearest, one for all samples or one per sample.
            height, width: pixels, default the size of the input or of the checkpoint.
            guidance_scale: default 3.5, for task depth the checkpoint's; ignored by a network without guidance
                embedding.
            seeds: one per sample. The noise of a sample depends only on its seed and size.
            generator: instead of seeds, one a sample, or one that is drawn from sample after sample. A CPU generator
                with manual_seed(7) gives the noise of seed 7. None of them: torch's global generator.
            latents: instead of them, packed noise (2B, N, C), first RGB, then depth.
            num_images_per_prompt: samples of each prompt, image or map.
            prompt_embeds, pooled_prompt_embeds: instead of prompt, (B, T, D) and (B, P) of `encode_prompt`.
            max_sequence_length: T5 tokens, default the checkpoint's.
            ensemble_size: for task depth, merge this many estimates of each image, of the seeds s, s + 1, ...
            processing_resolution: resize the input so that its longer side has this many pixels; 0 only rounds its size
                up to what the network takes. None leaves it as it is.
            match_input_resolution: return results at the size of the input, not of the resized one.
            output_uncertainty: return the spread of the ensemble.
            output_type: "np", "pil", "pt" or "latent", see JointDiTOutput.
            return_dict: False returns the tuple (rgb, disparity, finite[, uncertainty]).
            callback_on_step_end: called as callback(pipe, step, timestep, tensors) after each step; the tensors that it
                returns replace those of the loop. Tensors have 2B rows, first RGB, then depth.
            callback_on_step_end_tensor_inputs: names of these tensors.
            condition_refresh: compute the clean half in every n-th step; 1 is exact (see `denoise`).
            on_step: called after each step (see `denoise`).
            rgb_refresh: renamed to condition_refresh.

        Raises:
            InputError: an argument is invalid; the message names it.
        """
        if rgb_refresh is not None:
            raise InputError("rgb_refresh was renamed: give condition_refresh instead.")
        arguments = CallArguments(
            task=task,
            prompt=prompt,
            image=image,
            disparity=disparity,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            condition_refresh=condition_refresh,
            seeds=seeds,
            generator=generator,
            latents=latents,
            num_images_per_prompt=num_images_per_prompt,
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            ensemble_size=ensemble_size,
            processing_resolution=processing_resolution,
            output_uncertainty=output_uncertainty,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        inputs = self.check_inputs(arguments)
        self._interrupt = False
        self._guidance_scale = guidance_scale if guidance_scale is not None else self._default_guidance(task)

        with step_of(self.stopwatch, "text"):
            prompt_embeds, pooled_prompt_embeds = self._encode_text(inputs, arguments, max_sequence_length)
        with step_of(self.stopwatch, "encode"):
            condition = self._encode_condition(inputs)
        noise = self.prepare_latents(inputs, generator, latents)
        grid = (inputs.height // self.size_multiple, inputs.width // self.size_multiple)
        with step_of(self.stopwatch, "denoise"):
            steps = denoising_steps(
                self.transformer,
                task,
                noise,
                condition,
                prompt_embeds=prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                img_ids=image_position_ids(*grid).to(noise[0]),
                txt_ids=text_position_ids(prompt_embeds.shape[1]).to(noise[0]),
                num_inference_steps=num_inference_steps,
                guidance_scale=self._guidance_scale,
                condition_refresh=condition_refresh,
                scheduler=self.scheduler,
            )
            state = self._run_steps(
                steps, num_inference_steps, on_step, callback_on_step_end, callback_on_step_end_tensor_inputs
            )
        with step_of(self.stopwatch, "decode"):
            output = decode_output(
                inputs,
                state.results(task, condition),
                lambda packed: self.decode_pixels(packed, inputs.height, inputs.width),
                depth_transform=self.depth_transform,
                output_type=output_type,
                output_uncertainty=output_uncertainty,
                match_input_resolution=match_input_resolution,
            )
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()


def _checkpoint_folder(name: FilePath | None, kwargs: dict[str, Any]) -> Path:
    """Return the local folder of a checkpoint, downloaded if needed; pops the options of the download from kwargs."""
    assert name is not None
    folder = TINY_CHECKPOINT if name == "tiny" else Path(name)
    options = {option: kwargs.pop(option) for option in DOWNLOAD if option in kwargs}
    if not folder.is_dir():
        is_path = name == "tiny" or folder.exists() or folder.is_absolute() or str(name).startswith((".", "~"))
        if is_path or len(folder.parts) != 2:
            raise ModelError(f"{folder}: there is no such folder, give a model saved with save_pretrained.")
        try:
            folder = Path(DiffusionPipeline.download(str(name), use_safetensors=True, **options))
        except network_errors(OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{name}: no local folder, and the hub download failed ({reason}).") from error
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder}: model_index.json is missing, give the folder of a whole pipeline.")
    return folder


def local_checkpoint(name: FilePath) -> Path:
    """Return the local folder of a checkpoint, after a download from the hub if needed. Raises ModelError."""
    return _checkpoint_folder(name, {})
