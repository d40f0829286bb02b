"""Training of an adapter on Ray Train: two workers equal one, and a killed worker changes no digit."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.train import load_train_spec
from jointdit.pipeline import JointDiTPipeline
from jointdit.training.adapter import train_adapter
from pipelines.training.run import facts_of, load_for_training, open_source, run_training
from pipelines.training.spec import AdapterJob


def make_job(tmp_path: Path, name: str, *overrides: str) -> AdapterJob:
    spec = tmp_path / "train.yaml"
    spec.write_text(
        """
recipe: adapter
output: out
model: {name: tiny}
data: {kind: scenes, count: 8}
training:
  steps: 9
  batch_size: 2
  buckets: [[32, 32]]
  precision: float32
  optimizer: {kind: adamw, learning_rate: 1.0e-3}
  validation: {every: 0}
  checkpoint_every: 3
save_pipeline: false
"""
    )
    job = load_train_spec(spec, [f"output={tmp_path / name}", *overrides])
    assert isinstance(job, AdapterJob)
    return job


def train_here(job: AdapterJob) -> Path:
    """Run the same training in this process, without Ray."""
    torch.set_num_threads(1)
    folder = Path(job.output)
    pipe = load_for_training(job.model, torch.device("cpu"))
    train_adapter(job.training, pipe, open_source(job), folder, job.seed, facts_of(job), report=lambda line: None)
    return folder


def first_gradient(folder: Path) -> dict[str, torch.Tensor]:
    """Return the gradient of a run of one step, from the first moment of AdamW, which is a tenth of it."""
    tensors = load_file(folder / "training.safetensors")
    return {name: value / 0.1 for name, value in tensors.items() if name.startswith("exp_avg.")}


@pytest.mark.slow
def test_two_workers_give_the_gradient_of_one_with_the_double_batch(ray_cluster: None, tmp_path: Path) -> None:
    one = train_here(make_job(tmp_path, "one", "training.steps=1", "training.batch_size=4"))
    lines: list[str] = []
    workers = ("resources.workers=2", "resources.cpus_per_worker=0.5", "save_pipeline=true")
    made = run_training(make_job(tmp_path, "two", "training.steps=1", *workers), lines.append)
    assert any("loss" in line for line in lines)
    single, double = first_gradient(one), first_gradient(tmp_path / "two")
    assert single.keys() == double.keys()
    assert max(float(value.abs().max()) for value in single.values()) > 1e-2
    for name, value in single.items():
        torch.testing.assert_close(double[name], value, atol=1e-5, rtol=0, msg=name)
    (loss_of_one,), (loss_of_two,) = ((tmp_path / n / "loss.jsonl").read_text().splitlines() for n in ("one", "two"))
    assert json.loads(loss_of_two)["loss"] == pytest.approx(json.loads(loss_of_one)["loss"], abs=1e-5)
    assert made.pipeline is not None
    pipe = JointDiTPipeline.from_pretrained(made.pipeline)
    assert (pipe.config.default_height, pipe.config.default_width) == (32, 32)


def worker_with_open(path: Path) -> int | None:
    """Return another process that has a file open, or None."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                if any(descriptor.resolve() == path for descriptor in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:
                continue  # the process ended, or belongs to another user
    return None


@pytest.mark.slow  # starts four processes; test_adapter_training.py has a fast version
def test_a_worker_killed_with_sigkill_changes_no_digit_of_the_curve(ray_cluster: None, tmp_path: Path) -> None:
    whole, killed = make_job(tmp_path, "whole"), make_job(tmp_path, "killed")
    train_here(whole)
    record = tmp_path / "killed" / "loss.jsonl"
    done = threading.Event()
    victims: list[int] = []

    def kill() -> None:
        while not done.is_set() and not (record.exists() and len(record.read_text().splitlines()) >= 5):
            time.sleep(0.01)
        victim = worker_with_open(record)
        if victim is not None and not done.is_set():
            os.kill(victim, signal.SIGKILL)
            victims.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    lines: list[Any] = []
    try:
        run_training(killed, lines.append)
    finally:
        done.set()
        killer.join()
    assert len(victims) == 1
    assert any("a worker was lost" in line for line in lines)
    assert any("resumes at step 3" in line for line in lines)
    assert record.read_bytes() == (tmp_path / "whole" / "loss.jsonl").read_bytes()
    adapters = [load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())
