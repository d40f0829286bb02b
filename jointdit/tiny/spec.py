"""The training spec: what `jointdit train` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from jointdit.training.adapter_spec import Frozen


class ScenesSpec(Frozen):
    """The rendered training set. Scenes 0 .. count - 1; evaluation draws from seed 1e9 on."""

    count: int = Field(30_720, gt=0, multiple_of=256)
    size: int = Field(128, ge=32, multiple_of=16, description="width and height in pixels")
    processes: int = Field(2, gt=0)
    mirrored: bool = Field(False, description="the transformers also see each scene mirrored, left and right told so")


class StageSpec(Frozen):
    """One optimisation: linear warm-up, cosine decay to a twentieth, a moving average of the weights."""

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
    """A stage that reads captions."""

    text_drop: float = Field(0.1, ge=0, le=1, description="share of captions replaced by the empty prompt")


class JointStageSpec(TextStageSpec):
    """The adapter's stage. Depth is estimated with the empty prompt, everything else with a caption."""

    text_drop_depth: float | None = Field(
        None, ge=0, le=1, description="that share where the image has less noise than its depth; default: text_drop"
    )


class TrainSpec(Frozen):
    """Scenes -> autoencoder -> decoder alone -> text-to-image base -> guidance -> JointDiT adapter -> one folder."""

    recipe: Literal["tiny"] = "tiny"
    seed: int = Field(0, ge=0)
    output: Path = Field(description="folder for checkpoints, logs and the finished pipeline")
    threads: int = Field(0, ge=0, description="torch threads; 0 leaves torch's own choice")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
    compile: bool | None = Field(None, description="the transformers' blocks, by torch.compile; None: on a GPU")
    scenes: ScenesSpec = ScenesSpec.model_validate({})
    vae: StageSpec
    decoder: StageSpec
    base: TextStageSpec
    guidance: TextStageSpec
    joint: JointStageSpec


class AblationSpec(Frozen):
    """Four ways to train an adapter on the frozen base of a tiny checkpoint, a few times each."""

    recipe: Literal["ablation"]
    seeds: tuple[int, ...] = (0, 1, 2)
    output: Path = Field(description="folder for scenes, latents, scores and the table")
    threads: int = Field(0, ge=0, description="torch threads; 0 leaves torch's own choice")
    model: str = Field("tiny", description="the checkpoint whose base, VAE and text encoders are used")
    scenes: ScenesSpec = ScenesSpec.model_validate({})
    joint: JointStageSpec
    held_out: int = Field(100, ge=2, description="scenes that depth and depth-to-image are measured on")
    prompts: int = Field(36, ge=2, description="joint samples")
    depth_steps: int = Field(4, ge=1)
    steps: int = Field(8, ge=1, description="of joint samples and depth-to-image")
