"""Training of an adapter: the authors' numbers, exact resume, equal results however a step is cut, and bad endings."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from jointdit.errors import ModelError, SpecError
from jointdit.loading.cpu_dtype import fast_dtype
from jointdit.loading.official import adapter_tensors, gather_official
from jointdit.model.latents import pack_latents
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.pipeline import JointDiTPipeline
from jointdit.training.adapter import ADAPTER, CHECKPOINT, draw, train_adapter
from jointdit.training.adapter_spec import AdapterTraining, OptimizerSpec
from jointdit.training.loss import NoisyPairs, velocity_loss
from jointdit.training.optimizers import build_optimizer, learning_rate_factor
from jointdit.training.pairs import Bucket, Pair, ScenePairs
from jointdit.training.parallel import World
from tests.jointdit.conftest import T5_LENGTH, small_components


class Scenes(ScenePairs):
    """Scenes that are rendered once."""

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        return super().read(range(self.count), (32, 32))

    def read(self, numbers: Sequence[int], bucket: Bucket) -> Sequence[Pair]:
        assert bucket == (32, 32)
        return [self.pairs[number] for number in numbers]


SCENES = Scenes(6)


def small_pipeline() -> JointDiTPipeline:
    """A small random pipeline with a fresh adapter; each one the same."""
    components = small_components()
    transformer = JointDiTTransformer2DModel.from_flux(components.pop("transformer"), lora_ranks=4)
    return JointDiTPipeline(transformer=transformer, max_sequence_length=T5_LENGTH, **components)


def training(**changes: Any) -> AdapterTraining:
    settings: dict[str, Any] = {
        "steps": 4,
        "batch_size": 2,
        "buckets": [[32, 32]],
        "precision": "float32",
        "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
        "validation": {"every": 0},
    }
    return AdapterTraining.model_validate({**settings, **changes})


def run(folder: Path, **changes: Any) -> JointDiTPipeline:
    pipe = small_pipeline()
    train_adapter(training(**changes), pipe, SCENES, folder, report=lambda line: None)
    return pipe


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "loss.jsonl").read_text().splitlines()]


def test_the_step_gives_the_authors_loss_and_gradients(golden: Any) -> None:
    model, step = golden.network(), golden.tensors("training_step_a")
    t = step["timesteps"] / 1000 if step["timesteps"].max() > 1 else step["timesteps"]
    pairs = len(t) // 2
    inputs = NoisyPairs(
        clean=pack_latents(step["latents"]),
        noise=pack_latents(step["noise"]),
        t=t,
        states=step["txt"][:pairs],
        pooled=step["y"][:pairs],
    )
    loss = velocity_loss(model, model, inputs, step["img_ids"])
    assert loss.item() == pytest.approx(golden.numbers("training_step_a")["loss"], abs=1e-6)
    loss.backward()
    names = adapter_tensors(model.config.num_layers, model.config.num_single_layers)
    gradients = gather_official({name: p.grad for name, p in model.adapter_named_parameters()}, names)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, step[f"grad.{name}"], atol=1e-6, rtol=0, msg=name)


def test_the_loss_falls_the_base_stays_and_the_adapter_is_in_the_published_layout(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in small_pipeline().transformer.state_dict().items()}
    changes = {"steps": 60, "ema": 0.9, "optimizer": {"kind": "adafactor", "learning_rate": 0.02, "warmup": 5}}
    pipe = run(tmp_path, **changes)
    found = losses(tmp_path)
    assert sum(found[-15:]) < 0.9 * sum(found[:15])
    trained = pipe.transformer.state_dict()
    adapter = {name for name, _ in pipe.transformer.adapter_named_parameters()}
    assert all(torch.equal(before[name], trained[name]) for name in before if name not in adapter)

    flux = small_components()["transformer"]
    again = JointDiTTransformer2DModel.from_flux(flux, tmp_path / ADAPTER)
    for name, value in again.adapter_named_parameters():
        assert torch.equal(value, trained[name]), name
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        name = "transformer_blocks.0.attn.joint_proj.weight"
        assert torch.equal(file.get_tensor(f"ema.{name}"), trained[name])  # the average is what is kept
        assert not torch.equal(file.get_tensor(f"now.{name}"), trained[name])


@pytest.mark.parametrize("kind", ["adafactor", "adamw", "muon"])
def test_a_run_in_two_sittings_is_one_run(tmp_path: Path, kind: str) -> None:
    changes = {"optimizer": {"kind": kind, "learning_rate": 1e-3}, "ema": 0.5}
    run(tmp_path / "whole", **changes)
    run(tmp_path / "halves", **changes, steps=2)
    run(tmp_path / "halves", **changes)
    assert (tmp_path / "halves/loss.jsonl").read_bytes() == (tmp_path / "whole/loss.jsonl").read_bytes()
    whole, halves = load_file(tmp_path / "whole" / ADAPTER), load_file(tmp_path / "halves" / ADAPTER)
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())


SCRIPT = """
import sys
from pathlib import Path
from tests.jointdit.training.test_adapter_training import SCENES, small_pipeline, train_adapter, training
train_adapter(training(steps=16, checkpoint_every=3), small_pipeline(), SCENES, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_run_killed_with_sigkill_goes_on_to_the_same_curve_to_the_last_digit(tmp_path: Path) -> None:
    run(tmp_path / "whole", steps=16, checkpoint_every=3)
    killed = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(killed)], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (killed / CHECKPOINT).exists() or len((killed / "loss.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len((killed / "loss.jsonl").read_text().splitlines()) < 16
    run(killed, steps=16, checkpoint_every=3)
    assert (killed / "loss.jsonl").read_bytes() == (tmp_path / "whole/loss.jsonl").read_bytes()
    whole, again = load_file(tmp_path / "whole" / ADAPTER), load_file(killed / ADAPTER)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def gradients(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's only step: adamw's first moment is the gradient times 1 - beta1, and no norm was above the clip."""
    found = load_file(folder / CHECKPOINT)
    return {name: value / (1 - 0.9) for name, value in found.items() if name.startswith("exp_avg.")}


def test_accumulated_batches_give_the_gradient_of_one(tmp_path: Path) -> None:
    run(tmp_path / "one", steps=1, batch_size=4)
    run(tmp_path / "two", steps=1, batch_size=2, accumulate=2)
    one, two = gradients(tmp_path / "one"), gradients(tmp_path / "two")
    largest = max(float(value.abs().max()) for value in one.values())
    assert largest > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5 * largest, rtol=0)


def test_gradient_checkpointing_and_mixed_precision_move_only_rounding(tmp_path: Path) -> None:
    run(tmp_path / "plain")
    run(tmp_path / "recomputed", gradient_checkpointing=True)
    run(tmp_path / "mixed", precision="bfloat16")
    plain = losses(tmp_path / "plain")
    assert losses(tmp_path / "recomputed") == pytest.approx(plain, abs=1e-5)
    mixed = losses(tmp_path / "mixed")
    assert mixed == pytest.approx(plain, rel=0.02)
    assert (mixed != plain) == (fast_dtype("cpu") == torch.bfloat16)


def test_validation_gives_scores_a_sheet_and_tensorboard_events(tmp_path: Path) -> None:
    from PIL import Image

    lines: list[str] = []
    spec = training(steps=2, report_every=1, validation={"every": 2, "scenes": 2, "samples": 2, "steps": 1})
    pipe = small_pipeline()
    pipe.set_progress_bar_config(disable=True)
    train_adapter(spec, pipe, SCENES, tmp_path, report=lines.append)
    (score,) = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert score["step"] == 2
    assert score["abs_rel"] > 0
    with Image.open(tmp_path / "sheets/step-00000002.png") as sheet:
        assert sheet.size == (2 * 32, 5 * 32)
    tags = {value.tag for event in tensorboard_events(tmp_path / "tensorboard") for value in event.summary.value}
    assert {"train/loss", "train/learning_rate", "validation/abs_rel", "samples"} <= tags
    assert any("s left" in line for line in lines)


def tensorboard_events(folder: Path) -> list[Any]:
    """The events in the files TensorBoard reads: length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in folder.iterdir():
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_captions_of_their_own_share_are_dropped_where_the_image_is_cleaner() -> None:
    drawn = draw(training(batch_size=64, text_drop=0.0, text_drop_depth=1.0), World(), seed=0, step=0)
    assert torch.equal(drawn.dropped, drawn.t_rgb < drawn.t_disparity)
    assert 0 < drawn.dropped.sum() < 64


def test_another_spec_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(SpecError, match=r"differs in .*text_drop \(0\.1 there, 0\.3 here\), .*optimizer\.kind \(adamw"):
        run(tmp_path, text_drop=0.3, optimizer={"kind": "adafactor", "learning_rate": 1e-3})
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    components = small_components()
    transformer = JointDiTTransformer2DModel.from_flux(components.pop("transformer"), lora_ranks=6)
    pipe = JointDiTPipeline(transformer=transformer, max_sequence_length=T5_LENGTH, **components)
    with pytest.raises(ModelError, match=r"lora_A\.depth\.weight has shape \(4, .*the network needs \(6, "):
        train_adapter(training(), pipe, SCENES, tmp_path, report=lambda line: None)


def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_the_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    pipe = small_pipeline()
    pipe.transformer.proj_out.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="the loss is nan at step 2: lower"):
        train_adapter(training(), pipe, SCENES, tmp_path, report=lambda line: None)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.jointdit.training.test_adapter_training import SCENES, small_pipeline, train_adapter, training
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    train_adapter(training(steps=4, checkpoint_every=1), small_pipeline(), SCENES, folder)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    before = (tmp_path / CHECKPOINT).read_bytes()
    assert len(before) > 20_000
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    *_, last = answer.stdout.splitlines()
    assert last.startswith("StoreError")
    assert f"{CHECKPOINT} cannot be written" in last
    assert "make room and run again" in last
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert list(tmp_path.rglob("*.tmp")) == []
    run(tmp_path, steps=4)  # with room again it goes on
    assert len(losses(tmp_path)) == 4


def test_the_papers_training_does_not_clip_gradients(tmp_path: Path) -> None:
    assert OptimizerSpec().gradient_clip is None
    optimizer = {"kind": "adamw", "learning_rate": 1e-3}
    run(tmp_path / "none", steps=1)
    run(tmp_path / "loose", steps=1, optimizer={**optimizer, "gradient_clip": 1e6})
    run(tmp_path / "tight", steps=1, optimizer={**optimizer, "gradient_clip": 1e-3})
    plain, loose, tight = (gradients(tmp_path / name) for name in ("none", "loose", "tight"))
    assert all(torch.equal(value, loose[name]) for name, value in plain.items())
    norm = torch.nn.utils.get_total_norm(list(plain.values())).item()
    assert torch.nn.utils.get_total_norm(list(tight.values())).item() == pytest.approx(1e-3, rel=1e-3)
    (line,) = (json.loads(line) for line in (tmp_path / "none/loss.jsonl").read_text().splitlines())
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-3)


def test_the_learning_rate() -> None:
    spec = OptimizerSpec(warmup=10, decay="cosine", final=0.1)
    assert learning_rate_factor(0, 110, spec) == pytest.approx(0.1)
    assert learning_rate_factor(9, 110, spec) == 1
    assert learning_rate_factor(60, 110, spec) == pytest.approx(0.55)
    assert learning_rate_factor(110, 110, spec) == pytest.approx(0.1)
    assert learning_rate_factor(60, 110, OptimizerSpec(decay="linear", final=0)) == pytest.approx(50 / 110)
    assert learning_rate_factor(60, 110, OptimizerSpec()) == 1
    twentieth = OptimizerSpec(warmup=10, decay="cosine")  # as in the stages of the tiny checkpoint
    assert [learning_rate_factor(step, 100, twentieth) for step in (0, 9, 100)] == pytest.approx([0.1, 1.0, 0.05])


def test_adafactor_moves_a_weight_that_is_zero_by_the_learning_rate() -> None:
    """torch's own adafactor scales by the weight's size and would move it by a thousandth of that."""
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = build_optimizer(OptimizerSpec(learning_rate=1e-2), [parameter])
    parameter.grad = torch.ones(4, 4)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), -1e-2))


def test_sharded_training_is_the_same_training(tmp_path: Path) -> None:
    """FSDP2 on one process: every tensor goes through its cutting up, gathering, saving and loading."""
    from torch import distributed

    run(tmp_path / "plain", steps=3)
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for steps in (2, 3):
            world = World(strategy="fsdp")
            folder = tmp_path / "sharded"
            train_adapter(
                training(steps=steps), small_pipeline(), SCENES, folder, world=world, report=lambda line: None
            )
    finally:
        distributed.destroy_process_group()
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    plain, sharded = load_file(tmp_path / "plain" / ADAPTER), load_file(tmp_path / "sharded" / ADAPTER)
    assert plain.keys() == sharded.keys()
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value, atol=1e-5, rtol=0)
