"""The specs of `jointdit train` for the tiny checkpoint and the ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from jointdit.training.adapter_spec import Frozen


class ScenesSpec(Frozen):
    """The rendered training set, scenes 0 .. count - 1. Evaluation uses seeds from 1e9 on."""

    count: int = Field(30_720, gt=0, multiple_of=256)
    size: int = Field(128, ge=32, multiple_of=16, description="width and height in pixels")
    processes: int = Field(2, gt=0)
    mirrored: bool = Field(False, description="add each scene mirrored, with left and right swapped in its caption")


class StageSpec(Frozen):
    """A training stage: linear warm-up, cosine decay to a twentieth, a moving average of the weights."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(gt=0)
    warmup: int = Field(100, ge=0, description="steps")
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    autocast: Literal["none", "bfloat16"] = "bfloat16"
    checkpoint_every: int = Field(200, gt=0, description="steps")


class TextStageSpec(StageSpec):
    """A training stage with captions."""

    text_drop: float = Field(0.1, ge=0, le=1, description="share of captions replaced by the empty prompt")


class JointStageSpec(TextStageSpec):
    """The adapter's stage. Depth is estimated with the empty prompt, the other tasks use a caption."""

    text_drop_depth: float | None = Field(
        None, ge=0, le=1, description="that share if the image has less noise than its depth; default: text_drop"
    )


class TrainSpec(Frozen):
    """The tiny checkpoint: scenes -> autoencoder -> decoder -> text-to-image base -> guidance -> adapter -> folder."""

    recipe: Literal["tiny"] = "tiny"
    seed: int = Field(0, ge=0)
    output: Path = Field(description="folder for checkpoints, logs and the finished pipeline")
    threads: int = Field(0, ge=0, description="torch threads; 0 is torch's default")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    compile: bool | None = Field(None, description="compile the blocks with torch.compile; None: on a GPU")
    scenes: ScenesSpec = ScenesSpec.model_validate({})
    vae: StageSpec
    decoder: StageSpec
    base: TextStageSpec
    guidance: TextStageSpec
    joint: JointStageSpec


class AblationSpec(Frozen):
    """Four variants of adapter training on the frozen base of a tiny checkpoint, with several seeds each."""

    recipe: Literal["ablation"]
    seeds: tuple[int, ...] = (0, 1, 2)
    output: Path = Field(description="folder for scenes, latents, scores and the table")
    threads: int = Field(0, ge=0, description="torch threads; 0 is torch's default")
    model: str = Field("tiny", description="checkpoint that provides base, VAE and text encoders")
    scenes: ScenesSpec = ScenesSpec.model_validate({})
    joint: JointStageSpec
    held_out: int = Field(100, ge=2, description="scenes for the scores of depth and depth-to-image")
    prompts: int = Field(36, ge=2, description="joint samples")
    depth_steps: int = Field(4, ge=1)
    steps: int = Field(8, ge=1, description="of joint samples and depth-to-image")
