"""The steps of a call of JointDiTPipeline: check, encode, prepare, denoise; decoding.py is the last one.

Shapes: M members (samples, or the members of their ensembles), N packed image tokens, T text tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import DiffusionPipeline

from jointdit.denoising import DenoisingState, StepCallback, Task
from jointdit.errors import InputError
from jointdit.loading.adapter_flags import DepthTransform
from jointdit.model.latents import decode_latents, drawn_noise, encode_image, pack_latents, seeded_noise, unpack_latents
from jointdit.pixels import disparity_to_vae, image_to_vae
from jointdit.sampling.inputs import CallArguments, Callback, CallInputs, Generators, check_call
from jointdit.sampling.solvers import TIMESTEPS, check_scheduler, evaluations
from jointdit.sampling.text_encoding import TextCache, encode_texts

GUIDANCE = 3.5  # the authors' guidance scale


class PipelineSteps(DiffusionPipeline):
    """What JointDiTPipeline does between its arguments and its output."""

    _callback_tensor_inputs = ["latents", "prompt_embeds", "pooled_prompt_embeds"]  # noqa: RUF012
    _interrupt = False
    _guidance_scale: float = GUIDANCE
    _num_timesteps = 0
    _current_timestep: torch.Tensor | None = None
    _texts: TextCache
    vae_allow_tf32 = False  # True: the VAE uses PyTorch's setting, which is TF32 in convolutions on a GPU

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the last call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """The number of evaluations of the network in the last call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """The timestep in diffusers' unit, 1000 is noise; None outside of callbacks."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether a callback has stopped the call by setting `pipe._interrupt`."""
        return self._interrupt

    @property
    def depth_transform(self) -> DepthTransform:
        """What the adapter reads and makes instead of disparity."""
        return "inverse" if self.transformer.config.get("depth_transform") == "inverse" else "none"

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: the VAE's downsampling times the 2x2 packing."""
        return 2 * self._vae_factor

    @property
    def _vae_factor(self) -> int:
        return 8 if self.vae is None else int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def check_inputs(self, arguments: CallArguments) -> CallInputs:
        """Check the arguments of a call and the pipeline's components. Raises InputError."""
        for name in ("transformer", "vae"):
            if getattr(self, name) is None:
                raise InputError(f"the pipeline has no {name}: load it with the whole checkpoint.")
        if self.scheduler is not None:  # None is the default one
            check_scheduler(self.scheduler)
        if self.vae.dtype in (torch.bfloat16, torch.float16):
            self.vae.to(torch.float32)  # `to` and DiffusionPipeline.from_pretrained change it; far depth needs it
        network = self.transformer.config
        for name, width in (
            ("prompt_embeds", network.joint_attention_dim),
            ("pooled_prompt_embeds", network.pooled_projection_dim),
        ):
            tensor = getattr(arguments, name)
            if tensor is not None and tensor.shape[-1] != width:
                raise InputError(
                    f"{name} has {tensor.shape[-1]} channels but the transformer needs {width}: use encode_prompt of "
                    "the same checkpoint."
                )
        default_size = (self.config.default_height, self.config.default_width)
        return check_call(arguments, self.size_multiple, default_size, self._callback_tensor_inputs)

    def _default_guidance(self, task: Task) -> float:
        return float(self.config.default_depth_guidance) if task == "depth" else GUIDANCE

    def encode_prompt(
        self,
        prompt: str | Sequence[str | None] | None = None,
        num_images_per_prompt: int = 1,
        max_sequence_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T5's token states (B, T, D) and CLIP's pooled output (B, P), as FluxPipeline does.

        Each text is padded or truncated to a fixed length, without a mask. None and "" become one space. Repeated
        texts are encoded once. max_sequence_length: of T5, default the checkpoint's.
        """
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else prompt
        length = max_sequence_length or self.config.max_sequence_length
        texts = [text for text in prompts for _ in range(num_images_per_prompt)]
        prompt_embeds, pooled_prompt_embeds = encode_texts(self, texts, length, self._texts)
        return prompt_embeds, pooled_prompt_embeds

    def keep_texts(self, count: int) -> None:
        """Cache the embeddings of the last `count` texts and of the empty prompt; 0 disables the cache.

        Call it again after the text encoders change, which clears the cache. T5-XXL's states of 512 tokens take 4 MB
        per text in bfloat16.
        """
        self._texts = TextCache(count)

    def _encode_text(
        self, inputs: CallInputs, arguments: CallArguments, max_sequence_length: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (M, T, D) and (M, P), encoded or given."""
        if inputs.prompts is not None:
            return self.encode_prompt(inputs.prompts, max_sequence_length=max_sequence_length)
        assert arguments.prompt_embeds is not None and arguments.pooled_prompt_embeds is not None  # noqa: PT018
        rows = torch.from_numpy(inputs.text_rows).to(self._execution_device)
        return arguments.prompt_embeds.to(rows.device)[rows], arguments.pooled_prompt_embeds.to(rows.device)[rows]

    def _encode_condition(self, inputs: CallInputs) -> torch.Tensor | None:
        """Return packed latents (M, N, 4C) of the images or maps; each is encoded once."""
        if inputs.fitted is None:
            return None
        if inputs.images is not None:
            pixels = image_to_vae(inputs.fitted)
        else:
            pixels = disparity_to_vae(inputs.fitted, self.depth_transform)
        encoded = self.encode_pixels(pixels)
        return encoded[torch.from_numpy(inputs.condition_rows).to(encoded.device)]

    def prepare_latents(
        self, inputs: CallInputs, generator: Generators | None, latents: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return packed noise of RGB and depth, (M, N, 4C) float32 each: given, by seeds, or by generators."""
        if latents is None and inputs.seeds is not None:
            return self.prepare_noise(inputs.seeds, inputs.height, inputs.width)
        shape = self._noise_shape(inputs.height, inputs.width)
        if latents is None:
            noise = drawn_noise(generator, inputs.members, shape).to(self._execution_device)
            return pack_latents(noise[:, 0]), pack_latents(noise[:, 1])
        needed = pack_latents(torch.empty(1, *shape[1:], device="meta")).shape[1:]
        if latents.shape[1:] != needed:
            raise InputError(f"latents has shape {tuple(latents.shape)}: give (2B, N, C) with N, C = {tuple(needed)}.")
        rgb, depth = latents.to(self._execution_device, torch.float32).chunk(2)
        return rgb, depth

    def prepare_noise(self, seeds: Sequence[int], height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return packed noise of RGB and depth, (B, N, 4C) float32 each, drawn per sample from its seed on the CPU."""
        noise = seeded_noise(seeds, self._noise_shape(height, width)).to(self._execution_device)
        return pack_latents(noise[:, 0]), pack_latents(noise[:, 1])

    def _noise_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        return (2, self.vae.config.latent_channels, height // self._vae_factor, width // self._vae_factor)

    def _run_steps(
        self,
        steps: Iterator[DenoisingState],
        num_inference_steps: int,
        on_step: StepCallback | None,
        callback: Callback | None,
        tensor_inputs: Sequence[str],
    ) -> DenoisingState:
        """Run the loop with a progress bar and the callbacks; return its last state."""
        self._num_timesteps = evaluations(self.scheduler, num_inference_steps)
        state: DenoisingState | None = None
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for state in steps:
                if on_step is not None:
                    on_step(state.step, state.latents, state.velocity)
                if callback is not None:
                    self._current_timestep = torch.tensor(state.noise_level * TIMESTEPS)
                    tensors = {name: getattr(state, name) for name in tensor_inputs}
                    for name, tensor in (callback(self, state.step, self._current_timestep, tensors) or {}).items():
                        if name not in self._callback_tensor_inputs:
                            raise InputError(
                                f"callback_on_step_end returned {name!r}: return some of "
                                f"{', '.join(self._callback_tensor_inputs)}."
                            )
                        setattr(state, name, tensor)
                progress_bar.update()
                if self._interrupt:
                    break
        self._current_timestep = None
        assert state is not None
        return state

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1] to packed latents (B, N, 4C), the mode of the VAE's posterior."""
        return pack_latents(encode_image(self.vae, pixels.to(self._execution_device), allow_tf32=self.vae_allow_tf32))

    def decode_pixels(self, packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Decode packed latents (B, N, 4C) to pixels (B, 3, H, W), about [-1, 1], float32 on the CPU."""
        latents = unpack_latents(packed, height // self._vae_factor, width // self._vae_factor)
        return decode_latents(self.vae, latents, self.vae_allow_tf32).cpu()
