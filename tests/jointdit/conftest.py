"""Golden numbers of the authors' code and the small networks they were made with."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.pipeline import JointDiTPipeline
from jointdit.sampling.solvers import default_scheduler

DIFFUSERS_TESTS = Path(os.environ.get("DIFFUSERS_SOURCE", "/no-checkout-of-diffusers")) / "tests"
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


CLIP_LENGTH = 20
T5_LENGTH = 12


def small_components(guidance_embeds: bool = True) -> dict[str, Any]:
    """Random networks of the real classes, a FLUX base among them; any text is spelled in letters."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    clip_words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(clip_words)}, merges=[], model_max_length=CLIP_LENGTH
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    tokenizer_2 = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        projection_dim=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=48,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=3,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return {
        "transformer": FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ).eval(),
        "text_encoder": CLIPTextModel(clip).eval(),
        "tokenizer": tokenizer,
        "text_encoder_2": T5EncoderModel(t5).eval(),
        "tokenizer_2": tokenizer_2,
    }


def randomise_adapter(model: JointDiTTransformer2DModel) -> None:
    """Fill the zero halves of a fresh adapter, so that LoRA and joint connection count."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture(scope="session")
def small_pipeline() -> JointDiTPipeline:
    """A whole pipeline with random weights and 64 x 48 pixels as its default size. Do not change it."""
    components = small_components()
    transformer = JointDiTTransformer2DModel.from_flux(components.pop("transformer"), lora_ranks=4)
    randomise_adapter(transformer)
    return JointDiTPipeline(
        transformer=transformer,
        default_height=64,
        default_width=48,
        max_sequence_length=T5_LENGTH,
        **components,
    )


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FluxPipeline as FLUX fine-tunes are published, in diffusers' layout."""
    from diffusers import FluxPipeline

    folder = tmp_path_factory.mktemp("flux")
    FluxPipeline(scheduler=default_scheduler(), **small_components()).save_pretrained(folder)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of diffusers' common tests (test_diffusers_common.py)."""
    if DIFFUSERS_TESTS.is_dir():
        text = (DIFFUSERS_TESTS / "testing_utils.py").read_text()
        for name in sorted(set(re.findall(r"pytest\.mark\.(\w+)", text))):
            config.addinivalue_line("markers", f"{name}: of diffusers' tests")
