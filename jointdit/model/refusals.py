"""Methods of diffusers' FLUX transformer that JointDiT refuses, because they would have another effect.

diffusers' LoRA methods treat the depth LoRA as one of many adapters of the base: they switch it off, delete it, or add
a second one that the layers do not call. Other processors have no joint connection. Some caches assume other batches.
"""

from __future__ import annotations

from typing import Any, NoReturn

from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

from jointdit.errors import ModelError

CACHES = (FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig)
LORA_ADVICE = (
    "JointDiT's layers have the depth LoRA alone: fuse a LoRA of FLUX into the base with "
    "JointDiTPipeline.from_pretrained(base=..., adapter=..., base_loras=[(path, scale)])."
)


class RefusedMethods:
    """A mixin before FluxTransformer2DModel. Each of its methods raises ModelError; enable_cache for some caches."""

    def load_lora_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a second LoRA, which the layers would not call."""
        raise ModelError(f"load_lora_adapter would have no effect. {LORA_ADVICE}")

    def add_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a second LoRA, as load_lora_adapter."""
        raise ModelError(f"add_adapter would have no effect. {LORA_ADVICE}")

    def save_lora_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a file that would lack the joint connection."""
        raise ModelError("save_lora_adapter would not save the joint connection: use to_official(adapter=path).")

    def _change_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to switch off, delete or merge the depth LoRA, which is a part of the network."""
        raise ModelError(f"The depth LoRA is a part of the network, and cannot be changed. {LORA_ADVICE}")

    set_adapter = set_adapters = delete_adapters = _change_adapter
    enable_adapters = disable_adapters = enable_lora = disable_lora = unload_lora = _change_adapter
    fuse_lora = unfuse_lora = enable_lora_hotswap = _change_adapter

    def set_attn_processor(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse another processor."""
        raise ModelError("Another attention processor has no joint connection: use set_attention_backend for kernels.")

    def fuse_qkv_projections(self) -> NoReturn:
        """Refuse fused projections."""
        raise ModelError("Fused projections have no depth LoRA: leave fuse_qkv_projections out.")

    def enable_cache(self, config: Any) -> None:
        """Enable a cache of diffusers. Whether a step is skipped depends on all samples of the batch.

        Raises:
            ModelError: the cache has no effect on FLUX, or takes the halves of the batch for guidance.
        """
        if not isinstance(config, CACHES):
            names = ", ".join(kind.__name__ for kind in CACHES)
            raise ModelError(f"{type(config).__name__} does not work with JointDiT's batch: use one of {names}.")
        super().enable_cache(config)  # type: ignore[misc]  # of CacheMixin
