"""JointDiT's network: diffusers' FLUX transformer on a doubled batch.

The batch is `[rgb x B; depth x B]`. Shapes: B pairs, N image tokens, T text tokens, C = heads * head width. Pair b is
rows b and B + b. Both halves use the frozen base weights. The adapter consists of a LoRA, which applies to the depth
half only, and one joint Linear per block, which connects the halves.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import FluxTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  DiffusionPipeline looks for it in this module
from torch import nn

from jointdit.errors import ModelError
from jointdit.loading import official
from jointdit.loading.adapter_flags import DepthTransform, depth_transform_of, write_flags
from jointdit.loading.checkpoint_files import (
    FilePath,
    check_tensors,
    folder_tensor_shapes,
    tensor_shapes,
    wrap_load_errors,
)
from jointdit.loading.options import as_dtype, network_options
from jointdit.model.condition_cache import HALVES, ConditionCache
from jointdit.model.depth_lora import add_depth_lora, compact_lora_ranks, expand_lora_ranks, only_half_in_batch
from jointdit.model.joint_attention import JOINT_WEIGHT_SHARPNESS, add_joint_connection, joint_weights
from jointdit.model.refusals import RefusedMethods

ADAPTER_ADVICE = "give the adapter that was trained for this base network"

ADAPTER_SETTINGS = ("lora_ranks", "joint_weight_sharpness", "depth_transform")  # config entries in addition to FLUX's


class JointDiTTransformer2DModel(RefusedMethods, FluxTransformer2DModel):
    """Predicts the velocity of RGB and depth latents, each half at its own noise level.

    The arguments are those of diffusers' FluxTransformer2DModel, and three more. `lora_ranks`: None for the paper's
    ranks, one int for all layers, or a mapping that overrides the paper's, with "blocks" or an official layer name
    ("txt_in", "vector_in.in_layer", ...) as keys. `joint_weight_sharpness`: see `joint_attention.joint_weights`.
    `depth_transform`: "inverse" for an adapter that was trained on 1 - disparity, see loading/adapter_flags.py.

    In a new adapter LoRA B and the joint Linears are zero, so each half computes the base network.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 64,
        out_channels: int | None = None,
        num_layers: int = 19,
        num_single_layers: int = 38,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = (16, 56, 56),
        lora_ranks: int | dict[str, int] | None = None,
        joint_weight_sharpness: float = JOINT_WEIGHT_SHARPNESS,
        depth_transform: DepthTransform = "none",
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=pooled_projection_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
        )
        if depth_transform not in get_args(DepthTransform):
            raise ModelError(
                f"depth_transform is {depth_transform!r}: use one of {', '.join(get_args(DepthTransform))}."
            )
        self._add_adapter()

    def _add_adapter(self) -> None:
        """Freeze the base, replace the LoRA targets, add the joint Linears."""
        self.requires_grad_(False)
        groups = official.lora_groups(self.config.num_layers, self.config.num_single_layers)
        ranks = expand_lora_ranks(self.config.lora_ranks, groups)
        self.register_to_config(lora_ranks=compact_lora_ranks(ranks))
        add_depth_lora(self, groups, ranks)
        for block in itertools.chain(self.transformer_blocks, self.single_transformer_blocks):
            add_joint_connection(block.attn)

    def adapter_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over names and parameters of the adapter; an A that several layers share comes once."""
        return ((name, p) for name, p in self.named_parameters() if is_adapter(name))

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that JointDiT trains: LoRA and joint Linears."""
        return [parameter for _, parameter in self.adapter_named_parameters()]

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        condition_cache: ConditionCache | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity eps - x of both halves.

        Args:
            hidden_states: packed latents (2B, N, in_channels).
            encoder_hidden_states: text states (2B, T, joint_attention_dim), equal in both halves.
            pooled_projections: (2B, pooled_projection_dim), equal in both halves.
            timestep: noise levels (2B,), 1 is noise, 0 is clean.
            img_ids: (N, 3), or (B, N, 3), of which only the first entry is used.
            txt_ids: (T, 3), or (B, T, 3), of which only the first entry is used.
            guidance: guidance scale (2B,); None for a network without guidance_embeds.
            encoder_attention_mask: (2B, T), 0 where a text token is padding. A half also uses the other half's mask,
                for the keys of the joint connection.
            condition_cache: cache of the clean half. If its `reuse` is set, only the generated half runs, and the
                clean half's velocity is that of the last refresh. Otherwise this call fills it.

        Returns:
            `.sample`, (2B, N, in_channels); a tuple with it if return_dict is False.

        Raises:
            ValueError: the batch is not made of pairs, guidance does not fit the network, or condition_cache comes
                together with a cache of diffusers.
        """
        self._check_inputs(hidden_states, timestep, guidance)
        if condition_cache is not None and self.is_cache_enabled:
            raise ValueError("condition_cache and a cache of diffusers mix batches of different rows: use one of them.")
        mask: torch.Tensor | None = None
        if encoder_attention_mask is not None:
            image_mask = encoder_attention_mask.new_ones(hidden_states.shape[:2])
            mask = torch.cat([encoder_attention_mask, image_mask], dim=1).bool()[:, None, None, :]
        weights = joint_weights(timestep, self.config.joint_weight_sharpness)
        text_ids = txt_ids[0] if txt_ids.ndim == 3 else txt_ids
        image_ids = img_ids[0] if img_ids.ndim == 3 else img_ids
        rotary = self.pos_embed(torch.cat((text_ids, image_ids)))

        if condition_cache is not None and condition_cache.reuse:
            half = condition_cache.generated_of
            with only_half_in_batch(self, HALVES[condition_cache.generated]):
                velocity = self._velocity(
                    half(hidden_states),
                    half(encoder_hidden_states),
                    half(pooled_projections),
                    half(timestep),
                    None if guidance is None else half(guidance),
                    half(weights),
                    None if mask is None else half(mask),
                    rotary,
                    condition_cache,
                )
            sample = condition_cache.with_given(velocity)
        else:
            sample = self._velocity(
                hidden_states,
                encoder_hidden_states,
                pooled_projections,
                timestep,
                guidance,
                weights,
                mask,
                rotary,
                condition_cache,
            )
            if condition_cache is not None:
                condition_cache.velocity = sample.chunk(2)[condition_cache.given]
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _velocity(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        guidance: torch.Tensor | None,
        weights: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        condition_cache: ConditionCache | None,
    ) -> torch.Tensor:
        """Run the blocks on both halves, or on the generated half with the cache of the clean half."""
        hidden_states = self.x_embedder(hidden_states)
        encoder_hidden_states = self.context_embedder(encoder_hidden_states)
        timestep = timestep.to(hidden_states.dtype) * 1000
        if guidance is None:
            temb = self.time_text_embed(timestep, pooled_projections)
        else:
            temb = self.time_text_embed(timestep, guidance.to(hidden_states.dtype) * 1000, pooled_projections)

        attention: dict[str, Any] = {"joint_weights": weights}
        if attention_mask is not None:
            attention["attention_mask"] = attention_mask
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        kept = condition_cache.layers(len(blocks)) if condition_cache is not None else itertools.repeat(None)

        for block, condition in zip(blocks, kept, strict=False):
            if condition is not None:
                attention = {**attention, "condition": condition}
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                encoder_hidden_states, hidden_states = self._gradient_checkpointing_func(
                    block, hidden_states, encoder_hidden_states, temb, rotary, attention
                )
            else:
                encoder_hidden_states, hidden_states = block(
                    hidden_states, encoder_hidden_states, temb, rotary, attention
                )

        hidden_states = self.norm_out(hidden_states, temb)
        sample: torch.Tensor = self.proj_out(hidden_states)
        return sample

    def _check_inputs(self, hidden_states: torch.Tensor, timestep: torch.Tensor, guidance: torch.Tensor | None) -> None:
        rows = hidden_states.shape[0]
        if rows % 2:
            raise ValueError(f"hidden_states has {rows} rows: give pairs, all RGB rows first, then all depth rows.")
        if timestep.shape != (rows,):
            raise ValueError(f"timestep has shape {tuple(timestep.shape)}: give one noise level per row, ({rows},).")
        if (guidance is not None) != self.config.guidance_embeds:
            given = "a value" if guidance is not None else "None"
            need = "one value per row" if self.config.guidance_embeds else "None"
            raise ValueError(f"guidance is {given} but this network takes {need}: see guidance_embeds in its config.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: FilePath, **kwargs: Any) -> JointDiTTransformer2DModel:
        """Load a folder written by save_pretrained, local or on the Hugging Face hub; kwargs are diffusers'.

        Raises ModelError if a local folder has no safetensors, its tensors do not match its config, or an option is
        unknown or not supported.
        """
        kwargs = network_options(kwargs, (*official.config_names(), *ADAPTER_SETTINGS))
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        if folder.is_dir():
            shapes = folder_tensor_shapes(folder)
            if not (folder / cls.config_name).is_file():
                raise ModelError(f"{folder}: {cls.config_name} is missing, give a folder written by save_pretrained.")
            with (
                wrap_load_errors(f"{folder}: its config.json does not describe a {cls.__name__}"),
                torch.device("meta"),
            ):
                expected = {
                    name: tuple(t.shape) for name, t in cls.from_config(cls.load_config(folder)).state_dict().items()
                }
            check_tensors(folder, shapes, expected, "the file and its config.json must be saved together")
        with wrap_load_errors(f"{folder}: cannot be loaded as {cls.__name__}"):
            model = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        assert isinstance(model, cls)
        return model

    @classmethod
    def from_flux(
        cls,
        flux: FluxTransformer2DModel,
        adapter: FilePath | None = None,
        lora_ranks: int | Mapping[str, int] | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> JointDiTTransformer2DModel:
        """Build JointDiT from a FLUX network and take over its modules, quantised Linears included.

        adapter: path of a published adapter, which also gives the ranks; None creates a new one with `lora_ranks`.
        torch_dtype: of the adapter, default the network's. Raises ModelError if the adapter does not fit.
        """
        return cls._around(flux, adapter, lora_ranks, flux.dtype if torch_dtype is None else as_dtype(torch_dtype))

    @classmethod
    def _around(
        cls,
        flux: FluxTransformer2DModel,
        adapter: FilePath | None,
        lora_ranks: int | Mapping[str, int] | None,
        dtype: torch.dtype | None,
    ) -> JointDiTTransformer2DModel:
        config = {name: value for name, value in flux.config.items() if name in official.config_names()}
        layers = (config["num_layers"], config["num_single_layers"])
        if adapter is not None:
            lora_ranks = ranks_in_file(adapter, config)
        transform = "none" if adapter is None else depth_transform_of(adapter)
        with torch.device("meta"):
            model = cls(**config, lora_ranks=lora_ranks, depth_transform=transform)
        for name, child in flux.named_children():
            setattr(model, name, child)
        with torch.device("meta") if adapter is not None else contextlib.nullcontext():
            model._add_adapter()

        if adapter is None:
            for parameter in model.adapter_parameters():
                parameter.data = parameter.data.to(dtype or flux.dtype)
        else:
            shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
            tensors = official.adapter_tensors(*layers)
            state = official.read_official(adapter, tensors, shapes, ADAPTER_ADVICE, dtype, flux.device)
            model.load_state_dict(state, strict=False, assign=True)
        return model.train(flux.training)

    @classmethod
    def from_official(
        cls,
        base: FilePath,
        adapter: FilePath | None,
        config: Mapping[str, Any] | None = None,
        torch_dtype: torch.dtype | None = torch.bfloat16,
        lora_ranks: int | Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
    ) -> JointDiTTransformer2DModel:
        """Load published safetensors files in BFL's layout, tensor by tensor, to the device.

        base: FLUX.1 as released. adapter: JointDiT's; None creates a new one with `lora_ranks`. config: arguments of
        diffusers' FluxTransformer2DModel, default FLUX.1-dev (without guidance embedding if the file has none, as
        schnell's). torch_dtype: None keeps the files'. Raises ModelError if the files do not fit.
        """
        torch_dtype = None if torch_dtype is None else as_dtype(torch_dtype)
        flux = official.read_flux(base, config or {}, torch_dtype, device)
        return cls._around(flux, adapter, lora_ranks, torch_dtype)

    def to_official(
        self, base: FilePath | None = None, adapter: FilePath | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the state dicts (base, adapter) in BFL's layout, and write them to the paths that are given.

        An adapter with a depth transform has a JSON beside it, as the authors' training writes.
        """
        state = {name.replace(".base_layer.", "."): tensor for name, tensor in self.state_dict().items()}
        layers = (self.config.num_layers, self.config.num_single_layers)
        base_state = official.gather_official(state, official.base_tensors(*layers, self.config.guidance_embeds))
        adapter_state = official.gather_official(state, official.adapter_tensors(*layers))
        if base is not None:
            official.write_official(base, base_state)
        if adapter is not None:
            official.write_official(adapter, adapter_state)
            write_flags(adapter, self.config.depth_transform)
        return base_state, adapter_state


def check_adapter(path: FilePath, config: Mapping[str, Any]) -> None:
    """Check a published adapter's header against a FLUX config, and its JSON. Raises ModelError if it does not fit."""
    layers = (config["num_layers"], config["num_single_layers"])
    given = {name: value for name, value in config.items() if name in official.config_names()}
    with torch.device("meta"):
        model = JointDiTTransformer2DModel(**given, lora_ranks=ranks_in_file(path, config))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    official.check_official(path, official.adapter_tensors(*layers), shapes, ADAPTER_ADVICE)
    depth_transform_of(path)


def is_adapter(name: str) -> bool:
    """Whether a tensor of the transformer belongs to the adapter, by its name."""
    return ".lora_" in name or ".joint_proj." in name


def ranks_in_file(path: FilePath, config: Mapping[str, Any]) -> dict[str, int]:
    """Read the LoRA ranks of a published adapter from its header, for a network of this config. Raises ModelError."""
    groups = official.lora_groups(config["num_layers"], config["num_single_layers"])
    shapes = tensor_shapes(path)
    for name in groups:
        if f"{name}.lora_A.weight" not in shapes:
            raise ModelError(f"{path}: tensor {name}.lora_A.weight is missing, {ADAPTER_ADVICE}.")
    return compact_lora_ranks({name: shapes[f"{name}.lora_A.weight"][0] for name in groups})
