"""JointDiTPipeline: prompts, images and disparity maps in, RGB and relative disparity out.

Shapes: B samples, H x W pixels, N packed image tokens, T text tokens, C latent channels. All samples of a call have
the same size, a multiple of 16 pixels with FLUX's VAE. `jointdit.geometry.depth.fit_to_model` resizes other images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from numpy.typing import ArrayLike, NDArray
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from jointdit.denoising import StepCallback, Task, check_task, denoise
from jointdit.errors import InputError, ModelError
from jointdit.loading.base_network import COMPONENTS_ADVICE, is_single_file, load_base
from jointdit.loading.checkpoint_files import FilePath, device_map_for, load_component, load_tokenizer, wrap_load_errors
from jointdit.loading.network_errors import network_errors
from jointdit.loading.quantization import Quantization
from jointdit.model.latents import (
    decode_latents,
    encode_image,
    image_position_ids,
    pack_latents,
    seeded_noise,
    text_position_ids,
    unpack_latents,
)
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.pixels import (
    check_disparities,
    check_images,
    disparity_to_vae,
    image_to_vae,
    one_each,
    vae_to_disparity,
    vae_to_image,
)
from jointdit.profiling.stopwatch import Stopwatch, step_of

TINY_CHECKPOINT = Path(__file__).parent / "tiny" / "checkpoint"
GUIDANCE = 3.5  # the authors' guidance scale
_SETTINGS = ("default_height", "default_width", "max_sequence_length", "default_depth_guidance")
_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
EMPTY_PROMPT = " "  # the authors' prompt for depth estimation and for dropped captions in training


@dataclass(frozen=True)
class JointDiTOutput:
    """Output of a call, one entry per sample.

    `disparity` is relative: the decoded map is scaled so that the nearest pixel of each image is 1 and the farthest 0.
    The input image or map is returned unchanged. A sample with values that are not finite has `finite` False, NaN
    disparity and black pixels; the other samples are not affected.
    """

    rgb: NDArray[np.uint8]  # (B, H, W, 3)
    disparity: NDArray[np.float32]  # (B, H, W)
    finite: NDArray[np.bool_]  # (B,)


class JointDiTPipeline(DiffusionPipeline):
    """RGB and depth together (`joint`), depth of an image (`depth`), or an image of a depth map (`depth-to-image`).

    The components are those of diffusers' FluxPipeline without a scheduler: JointDiT's transformer, VAE, CLIP (pooled
    output) and T5 (token states) with their tokenizers. A checkpoint also stores `default_height` and `default_width`
    (pixels), `max_sequence_length` (T5 tokens) and `default_depth_guidance` (guidance scale of task depth).
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    stopwatch: Stopwatch | None = None  # measures the time of each step, if set

    def __init__(
        self,
        transformer: JointDiTTransformer2DModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: PreTrainedTokenizerBase,
        default_height: int = 512,
        default_width: int = 512,
        max_sequence_length: int = 512,
        default_depth_guidance: float = GUIDANCE,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        self.register_to_config(
            default_height=default_height,
            default_width=default_width,
            max_sequence_length=max_sequence_length,
            default_depth_guidance=default_depth_guidance,
        )
        self._check_components()
        self._texts_kept = 0
        self._kept_texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # text -> (T, D) and (P,), in order of use

    def _check_components(self) -> None:
        network = self.transformer.config
        for setting, value, needed in (
            ("vae.latent_channels * 4", 4 * self.vae.config.latent_channels, network.in_channels),
            ("text_encoder.hidden_size", self.text_encoder.config.hidden_size, network.pooled_projection_dim),
            ("text_encoder_2.d_model", self.text_encoder_2.config.d_model, network.joint_attention_dim),
        ):
            if value != needed:
                raise ModelError(
                    f"{setting} is {value} but the transformer needs {needed}: combine parts of one checkpoint."
                )

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: the VAE's downsampling times the 2x2 packing."""
        return 2 * self._vae_factor

    @property
    def _vae_factor(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: FilePath | None = None,
        *,
        base: FilePath | None = None,
        adapter: FilePath | None = None,
        components: FilePath | None = None,
        torch_dtype: torch.dtype | None = None,
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
            torch_dtype: of the transformer and text encoders, default float32. The VAE always runs in float32,
                because the precision of far depth depends on it.
            quantization: how to quantise the transformer and text encoders while they are loaded.
            device: device of the loaded tensors, default the CPU.
            kwargs: components that replace the checkpoint's, as in diffusers, and options of the hub download.

        Raises:
            ModelError: files are missing, are not safetensors, or do not fit together.
        """
        if (pretrained_model_name_or_path is None) == (base is None) or (base is None) != (adapter is None):
            raise ModelError(
                "Give either the name of a JointDiT checkpoint, or both base= (a FLUX pipeline) and adapter=."
            )
        if base is None and components is not None:
            raise ModelError("components= needs base=, and a JointDiT checkpoint is complete: remove components=.")
        if base is not None and is_single_file(base) and components is None:
            raise ModelError(f"{base}: a single file holds only the transformer, {COMPONENTS_ADVICE}.")
        whole = base if components is None else components
        folder = _checkpoint_folder(pretrained_model_name_or_path if whole is None else whole, kwargs)
        dtype = torch_dtype or torch.float32
        with wrap_load_errors(f"{folder / cls.config_name} is not valid JSON"):
            index = dict(json.loads((folder / cls.config_name).read_text()))
        parts = {**{name: index[name] for name in _SETTINGS if name in index}, **kwargs}

        def quantized(name: Any) -> dict[str, Any]:
            config = quantization.config(name, dtype) if quantization is not None else None
            return {} if config is None else {"quantization_config": config}

        if "transformer" not in parts and base is None:
            parts["transformer"] = JointDiTTransformer2DModel.from_pretrained(
                folder / "transformer", dtype=dtype, **device_map_for(device), **quantized("transformer")
            )
        elif "transformer" not in parts:
            network = folder if components is None or base is None else base
            parts["transformer"] = load_base(network, adapter, folder, dtype, device, **quantized("transformer"))
        for name, kind, part_dtype in (
            ("vae", AutoencoderKL, torch.float32),
            ("text_encoder", CLIPTextModel, dtype),
            ("text_encoder_2", T5EncoderModel, dtype),
        ):
            if name not in parts:
                parts[name] = load_component(kind, folder / name, part_dtype, device, **quantized(name))
        for name in ("tokenizer", "tokenizer_2"):
            if name not in parts:
                parts[name] = load_tokenizer(folder / name)
        return cls(**parts)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str | None] | None = None,
        task: Task = "joint",
        *,
        seeds: Sequence[int],
        image: ArrayLike | Sequence[ArrayLike] | None = None,
        disparity: ArrayLike | Sequence[ArrayLike] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        condition_refresh: int = 1,
        on_step: StepCallback | None = None,
        rgb_refresh: int | None = None,
    ) -> JointDiTOutput:
        """Generate len(seeds) samples.

        Args:
            prompt: one for all samples or one per sample; None and "" are the empty prompt.
            task: "joint", "depth" or "depth-to-image".
            seeds: one per sample. The noise of a sample depends only on its seed and size.
            image: for task depth, uint8 (H, W, 3), one for all samples or one per sample.
            disparity: for task depth-to-image, float (H, W) in [0, 1], 1 nearest, one for all samples or one per
                sample.
            height, width: pixels, default the size of the input or of the checkpoint.
            guidance_scale: default 3.5, for task depth the checkpoint's; ignored by a network without guidance
                embedding.
            condition_refresh: compute the clean half in every n-th step; 1 is exact (see `denoise`).
            on_step: called after each step (see `denoise`).
            rgb_refresh: renamed to condition_refresh.

        Raises:
            InputError: an argument is invalid; the message names it.
        """
        if rgb_refresh is not None:
            raise InputError("rgb_refresh was renamed: give condition_refresh instead.")
        check_task(task)
        prompts = one_each("prompt", [prompt] if prompt is None or isinstance(prompt, str) else list(prompt), seeds)
        images = check_images(image, seeds, task)
        maps = check_disparities(disparity, seeds, task)
        height, width = self._size(height, width, images if images is not None else maps)
        if guidance_scale is None:
            guidance_scale = self.config.default_depth_guidance if task == "depth" else GUIDANCE

        with step_of(self.stopwatch, "text"):
            prompt_embeds, pooled_prompt_embeds = self.encode_prompt(prompts)
        noise = self.prepare_noise(seeds, height, width)
        condition = None
        with step_of(self.stopwatch, "encode"):
            if images is not None:
                condition = self.encode_pixels(image_to_vae(images))
            elif maps is not None:
                condition = self.encode_pixels(disparity_to_vae(maps))

        with step_of(self.stopwatch, "denoise"):
            rgb, depth = denoise(
                self.transformer,
                task,
                noise,
                condition,
                prompt_embeds=prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                img_ids=image_position_ids(height // self.size_multiple, width // self.size_multiple).to(noise[0]),
                txt_ids=text_position_ids(prompt_embeds.shape[1]).to(noise[0]),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                condition_refresh=condition_refresh,
                on_step=on_step,
            )

        finite = np.ones(len(seeds), dtype=bool)
        with step_of(self.stopwatch, "decode"):
            if images is None:
                images, finite = vae_to_image(self.decode_pixels(rgb, height, width))
            if maps is None:
                maps = vae_to_disparity(self.decode_pixels(depth, height, width))
        finite &= np.isfinite(maps).all(axis=(1, 2))
        self.maybe_free_model_hooks()
        return JointDiTOutput(
            rgb=np.where(finite[:, None, None, None], images, np.uint8(0)),
            disparity=np.where(finite[:, None, None], maps, np.float32(np.nan)),
            finite=finite,
        )

    def encode_prompt(self, prompts: Sequence[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T5's token states (B, T, D) and CLIP's pooled output (B, P), as FluxPipeline does.

        Each text is padded or truncated to a fixed length, without a mask. None and "" become one space. Repeated
        texts are encoded once.
        """
        texts = [text or EMPTY_PROMPT for text in prompts]
        unique = list(dict.fromkeys(texts))
        embeddings = {text: self._kept_texts[text] for text in unique if text in self._kept_texts}
        if missing := [text for text in unique if text not in embeddings]:
            clip_length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
            clip_ids = self._token_ids(self.tokenizer, missing, clip_length)
            t5_ids = self._token_ids(self.tokenizer_2, missing, self.config.max_sequence_length)
            pooled = self.text_encoder(clip_ids).pooler_output
            states = self.text_encoder_2(t5_ids)[0]
            embeddings |= dict(zip(missing, zip(states, pooled, strict=True), strict=True))
        if self._texts_kept:
            self._keep({text: embeddings[text] for text in unique})
        states, pooled = (torch.stack(rows) for rows in zip(*(embeddings[text] for text in texts), strict=True))
        return states.to(self._execution_device), pooled.to(self._execution_device)

    def keep_texts(self, count: int) -> None:
        """Cache the embeddings of the last `count` texts and of the empty prompt; 0 disables the cache.

        Call it again after the text encoders change, which clears the cache. T5-XXL's states of 512 tokens take 4 MB
        per text in bfloat16.
        """
        self._texts_kept, self._kept_texts = count, {}

    def _keep(self, embeddings: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Add embeddings to the cache, and remove the least recently used."""
        for text, (states, pooled) in embeddings.items():
            kept = self._kept_texts.pop(text, None)
            # Copied, because a row of a batch would keep the whole batch in memory.
            self._kept_texts[text] = kept or (states.clone(), pooled.clone())
        others = [text for text in self._kept_texts if text != EMPTY_PROMPT]
        for text in others[: max(0, len(others) - self._texts_kept)]:
            del self._kept_texts[text]

    def _token_ids(self, tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> torch.Tensor:
        tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: torch.Tensor = tokens.input_ids.to(self._execution_device)
        return ids

    def prepare_noise(self, seeds: Sequence[int], height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return packed noise of RGB and depth, (B, N, 4C) float32 each, drawn per sample from its seed on the CPU."""
        shape = (2, self.vae.config.latent_channels, height // self._vae_factor, width // self._vae_factor)
        noise = seeded_noise(seeds, shape).to(self._execution_device)
        return pack_latents(noise[:, 0]), pack_latents(noise[:, 1])

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1] to packed latents (B, N, 4C), the mode of the VAE's posterior."""
        return pack_latents(encode_image(self.vae, pixels.to(self._execution_device)))

    def decode_pixels(self, packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Decode packed latents (B, N, 4C) to pixels (B, 3, H, W), about [-1, 1], float32 on the CPU."""
        latents = unpack_latents(packed, height // self._vae_factor, width // self._vae_factor)
        return decode_latents(self.vae, latents).cpu()

    def _size(self, height: int | None, width: int | None, given: NDArray[Any] | None) -> tuple[int, int]:
        """Return (height, width) in pixels from the arguments, the input (B, H, W, ...) or the checkpoint."""
        default = (self.config.default_height, self.config.default_width) if given is None else given.shape[1:3]
        size = (height or default[0], width or default[1])
        if given is not None and size != default:
            found = f"{default[0]} x {default[1]}"
            raise InputError(
                f"height x width is {size[0]} x {size[1]} but the input is {found} pixels: leave them out."
            )
        for name, pixels in zip(("height", "width"), size, strict=True):
            if pixels < self.size_multiple or pixels % self.size_multiple:
                raise InputError(
                    f"{name} is {pixels} pixels: use a multiple of {self.size_multiple}, such as "
                    f"{max(1, round(pixels / self.size_multiple)) * self.size_multiple}."
                )
        return size


def _checkpoint_folder(name: FilePath | None, kwargs: dict[str, Any]) -> Path:
    """Return the local folder of a checkpoint, downloaded if needed; pops the options of the download from kwargs."""
    assert name is not None
    folder = TINY_CHECKPOINT if name == "tiny" else Path(name)
    options = {option: kwargs.pop(option) for option in _DOWNLOAD_OPTIONS if option in kwargs}
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
