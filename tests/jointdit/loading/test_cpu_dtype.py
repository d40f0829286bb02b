"""A CPU without units for 16-bit types computes in float32, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jointdit.loading.cpu_dtype import autocast_to_bfloat16, fast_dtype

ROOT = Path(__file__).parents[3]
# Both libraries of torch's CPU kernels, held to what a CPU of 2013 has: bfloat16 and float16 are emulated.
OLD_CPU = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

STAGES = """
import logging, sys
from pathlib import Path

import torch

from jointdit.training.adapter import computing, prepare_network
from jointdit.training.adapter_spec import AdapterTraining
from jointdit.tiny.loop import fit
from jointdit.training.optimizers import StackedMuon
from jointdit.training.parallel import World
from jointdit.tiny.spec import StageSpec
from jointdit.loading.cpu_dtype import fast_dtype
from pipelines.model.loading import load_pipeline
from pipelines.spec.job import ModelSpec
from pipelines.training.run import load_for_training
from pipelines.training.spec import TrainedModel

logging.basicConfig(stream=sys.stdout, format="%(message)s")
print("fast", *[fast_dtype("cpu", wanted) for wanted in (torch.bfloat16, torch.float16, torch.float32)])
print("cuda", fast_dtype("cuda", torch.bfloat16))

seen = set()
forward = torch.Tensor.__matmul__
torch.Tensor.__matmul__ = lambda a, b: seen.add(a.dtype) or forward(a, b)
matrix = torch.nn.Parameter(torch.randn(32, 64))
matrix.grad = torch.randn(32, 64)
StackedMuon([matrix], lr=0.1, adjust_lr_fn="match_rms_adamw").step()
torch.Tensor.__matmul__ = forward
print("muon", *seen)

layer = torch.nn.Linear(8, 8)
found = []
def loss(generator):
    found.append(layer(torch.randn(2, 8)))
    return found[-1].float().square().mean()
spec = StageSpec(steps=1, batch_size=1, learning_rate=1e-3)
fit("vae", spec, list(layer.named_parameters()), loss, Path(sys.argv[1]), 0, print)
print("stage", found[0].dtype)

for dtype in ("bfloat16", "float16"):
    print(dtype, load_pipeline(ModelSpec(dtype=dtype), "cpu").transformer.dtype)

pipe = load_for_training(TrainedModel(name="tiny", dtype="bfloat16"), torch.device("cpu"))
training = AdapterTraining(steps=1, precision="bfloat16")
prepare_network(pipe.transformer, training)
with computing(training, World()):
    print("adapter", pipe.transformer.x_embedder(torch.randn(1, pipe.transformer.config.in_channels)).dtype)
"""


@pytest.fixture(scope="module")
def on_an_old_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of STAGES in a process whose CPU has neither type."""
    folder = tmp_path_factory.mktemp("old")
    script = folder / "stages.py"
    script.write_text(STAGES)
    done = subprocess.run(
        [sys.executable, script, folder],
        env={**os.environ, **OLD_CPU, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_old_cpu_computes_in_float32(on_an_old_cpu: list[str]) -> None:
    assert "fast torch.float32 torch.float32 torch.float32" in on_an_old_cpu
    assert "cuda torch.bfloat16" in on_an_old_cpu
    for what in ("muon", "stage", "bfloat16", "float16", "adapter"):
        assert f"{what} torch.float32" in on_an_old_cpu


def test_an_old_cpu_says_what_it_computes_in(on_an_old_cpu: list[str]) -> None:
    for who, dtype in (("vae: ", "bfloat16"), ("", "bfloat16"), ("", "float16")):
        sentence = f"{who}this CPU has no hardware support for {dtype}: it computes in float32, which takes more memory"
        assert on_an_old_cpu.count(sentence) == 1, sentence


def test_what_the_cpu_computes_fast_is_as_fast_as_float32() -> None:
    """Products of Muon's size; an emulated type takes four times as long, and convolutions in one 150 times."""

    def seconds(dtype: torch.dtype) -> float:
        images, kernels = torch.randn(1, 32, 64, 64).to(dtype), torch.randn(32, 32, 3, 3).to(dtype)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            torch.nn.functional.conv2d(images, kernels, padding=1)
            best = min(best, time.perf_counter() - started)
        return best

    exact = seconds(torch.float32)
    for wanted in (torch.bfloat16, torch.float16):
        assert seconds(fast_dtype("cpu", wanted)) < 10 * exact, wanted


def test_mixed_precision_is_opened_by_one_function_alone() -> None:
    """Every other place would compute in bfloat16 where that is emulated."""
    files = [path for folder in ("jointdit", "pipelines", "jobs") for path in (ROOT / folder).rglob("*.py")]
    here = {path.name for path in files if any(word in path.read_text() for word in ("torch.autocast(", ".bfloat16()"))}
    assert here == {"cpu_dtype.py"}
    with autocast_to_bfloat16("cpu"):
        assert torch.is_autocast_enabled("cpu") == (fast_dtype("cpu") == torch.bfloat16)
    with autocast_to_bfloat16("cpu", enabled=False):
        assert not torch.is_autocast_enabled("cpu")
