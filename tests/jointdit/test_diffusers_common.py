"""diffusers' own common tests on our pipeline and network.

The wheel of diffusers has no tests. Get its repository and run

    DIFFUSERS_SOURCE=<folder of the repository> pytest -m slow tests/jointdit/test_diffusers_common.py

Tests that need a GPU skip themselves without one. What does not apply to JointDiT is listed below with the reason.
Mixins for LoRA, IP adapters, caches and single files are left out, because JointDiT has other layers and formats;
quantisation has tests of its own (loading/test_quantization.py).
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from typing import Any

import pytest
import torch

from jointdit import JointDiTPipeline, JointDiTTransformer2DModel
from tests.jointdit.conftest import DIFFUSERS_TESTS, T5_LENGTH, randomise_adapter, small_components

if not DIFFUSERS_TESTS.is_dir():
    pytest.skip("DIFFUSERS_SOURCE names no checkout of diffusers with its tests", allow_module_level=True)

# Its package is named tests, as ours is.
_PACKAGE = types.ModuleType("diffusers_tests")
_PACKAGE.__path__ = [str(DIFFUSERS_TESTS)]
sys.modules["diffusers_tests"] = _PACKAGE
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    of_pipelines: Any = importlib.import_module("diffusers_tests.pipelines.testing_utils")
    of_models: Any = importlib.import_module("diffusers_tests.models.testing_utils")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # theirs are not errors
]

NOT_OURS = {
    "test_loading_with_incorrect_variants_raises_error": "ours is a ModelError that names the folder",
    "test_from_save_pretrained_variant": "ours is a ModelError, not an OSError; test_diffusers_lines.py loads variants",
    "test_torch_dtype_dict": "one dtype for the network and the text encoders; the VAE always runs in float32",
    "test_save_load_optional_components": "gives a prompt without text encoders; see test_diffusers_lines.py",
    "test_save_load_local": "expects a log line for each component; test_pipeline.py saves and loads",
    "test_disk_offload_without_safetensors": "pickled weights are refused",
    "test_fuse_unfuse_qkv_projections": "refused, because fused projections have no depth LoRA",
    "test_attention_processor_dict": "refused, because another processor has no joint connection",
    "test_attention_processor_count_mismatch_raises_error": "refused, as test_attention_processor_dict",
}


def applicable(cls: type) -> type:
    """Skip the tests of NOT_OURS, with their reason."""
    for name, reason in NOT_OURS.items():
        if hasattr(cls, name):

            def not_ours(self: Any) -> None: ...

            setattr(cls, name, pytest.mark.skip(reason=reason)(not_ours))
    return cls


class PipelineConfig(of_pipelines.BasePipelineTesterConfig):
    """A small random pipeline."""

    pipeline_class = JointDiTPipeline
    required_input_params_in_call_signature = frozenset(
        ["prompt", "height", "width", "guidance_scale", "prompt_embeds", "pooled_prompt_embeds"]
    )
    batch_input_params = frozenset(["prompt"])
    output_shape = (3, 32, 32)

    @pytest.fixture(autouse=True)
    def _as_safetensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Save safetensors where the tests ask for pickles, and let them find our class."""
        save = JointDiTPipeline.save_pretrained
        monkeypatch.setattr(
            JointDiTPipeline,
            "save_pretrained",
            lambda pipe, folder, safe_serialization=True, **options: save(pipe, folder, **options),
        )
        monkeypatch.setattr("diffusers.pipelines.JointDiTPipeline", JointDiTPipeline, raising=False)

    def get_dummy_components(self) -> dict[str, Any]:
        components = small_components()
        components["transformer"] = JointDiTTransformer2DModel.from_flux(components["transformer"], lora_ranks=4)
        randomise_adapter(components["transformer"])
        return {**components, "scheduler": None}

    def get_dummy_inputs(self) -> dict[str, Any]:
        return {
            "prompt": "A painting of a squirrel eating a burger",
            "generator": self.get_generator(0),
            "num_inference_steps": 2,
            "guidance_scale": 5.0,
            "height": 32,
            "width": 32,
            "max_sequence_length": T5_LENGTH,
            "output_type": "pt",
        }


@applicable
class TestPipeline(PipelineConfig, of_pipelines.PipelineTesterMixin):
    pass


@applicable
class TestPipelineMemory(PipelineConfig, of_pipelines.MemoryTesterMixin):
    pass


class NetworkConfig(of_models.BaseModelTesterConfig):
    """A small random network and a batch of pairs."""

    model_class = JointDiTTransformer2DModel
    main_input_name = "hidden_states"
    output_shape = (16, 4)
    input_shape = (16, 4)
    model_split_percents = (0.9,)

    def get_init_dict(self) -> dict[str, Any]:
        return {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": [4, 4, 8],
            "lora_ranks": 4,
        }

    def get_dummy_inputs(self, batch_size: int = 1, device: Any = None) -> dict[str, torch.Tensor]:
        generator, rows = torch.Generator().manual_seed(0), 2 * batch_size
        shapes = {
            "hidden_states": (rows, 16, 4),
            "encoder_hidden_states": (rows, 8, 32),
            "pooled_projections": (rows, 32),
            "img_ids": (16, 3),
            "txt_ids": (8, 3),
        }
        inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        inputs["timestep"] = torch.ones(rows)
        where = device or importlib.import_module("diffusers_tests.testing_utils").torch_device
        return {name: tensor.to(where, self.torch_dtype) for name, tensor in inputs.items()}


@applicable
class TestNetwork(NetworkConfig, of_models.ModelTesterMixin):
    pass


@applicable
class TestNetworkMemory(NetworkConfig, of_models.MemoryTesterMixin):
    pass


@applicable
class TestNetworkTraining(NetworkConfig, of_models.TrainingTesterMixin):
    pass


@applicable
class TestNetworkAttention(NetworkConfig, of_models.AttentionTesterMixin):
    pass


@applicable
class TestNetworkAttentionBackend(NetworkConfig, of_models.AttentionBackendTesterMixin):
    pass
