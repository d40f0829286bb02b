"""Golden numbers of the authors' code and the small networks they were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jointdit.transformer import JointDiTTransformer2DModel

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden:
    """Reads tests/golden."""

    folder = GOLDEN

    def numbers(self, name: str) -> Any:
        return json.loads((GOLDEN / f"{name}.json").read_text())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(GOLDEN / f"{name}.safetensors")

    def network_config(self, case: str) -> dict[str, Any]:
        """diffusers' keys for the BFL config of a transformer case."""
        bfl = self.numbers(case)["config"]
        return {
            "in_channels": bfl["in_channels"],
            "num_layers": bfl["depth"],
            "num_single_layers": bfl["depth_single_blocks"],
            "attention_head_dim": bfl["hidden_size"] // bfl["num_heads"],
            "num_attention_heads": bfl["num_heads"],
            "joint_attention_dim": bfl["context_in_dim"],
            "pooled_projection_dim": bfl["vec_in_dim"],
            "guidance_embeds": bfl["guidance_embed"],
            "axes_dims_rope": tuple(bfl["axes_dim"]),
        }

    def network(
        self,
        case: str = "transformer_a",
        adapter: bool = True,
        dtype: torch.dtype | None = torch.float32,
        **options: Any,
    ) -> JointDiTTransformer2DModel:
        return JointDiTTransformer2DModel.from_official(
            GOLDEN / f"{case}.base.safetensors",
            GOLDEN / f"{case}.addons.safetensors" if adapter else None,
            config=self.network_config(case),
            torch_dtype=dtype,
            **options,
        )


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()
