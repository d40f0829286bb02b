"""A stand-in for the model behind the real worker; words in a prompt make it fail.

Its arrays depend on seed, prompt and input. It replaces only the weights: reading, batches, finish, commit and publish
are those of the engine.
"""

from __future__ import annotations

import os
import pathlib
import signal
import threading
from types import SimpleNamespace

import numpy as np

from pipelines.stages.generate import GenerationWorker


class StandInPipeline:
    """Called like JointDiTPipeline; words in a prompt make it fail as models fail."""

    def __init__(self, height: int, width: int) -> None:
        self.size = (height, width)

    def __call__(self, *, task, seeds, prompt=None, image=None, disparity=None, height=None, width=None, **sampling):
        condition = image if image is not None else disparity
        prompts = prompt if prompt is not None else [""] * len(seeds)
        rgb, maps, finite = [], [], []
        for number, (seed, text) in enumerate(zip(seeds, prompts, strict=True)):
            misbehave(text)
            size = condition[number].shape[:2] if condition is not None else (height, width)
            noise = np.random.default_rng(seed)
            ramp = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
            ramp = np.full(size, 0.5, np.float32) if "FLAT" in text else np.roll(ramp, int(noise.integers(1000)))
            maps.append(disparity[number] if disparity is not None else ramp)
            rgb.append(image[number] if image is not None else noise.integers(0, 256, (*size, 3), dtype=np.uint8))
            if "NAN" in text:
                maps[-1] = np.full(size, np.nan, np.float32)
            finite.append("NAN" not in text)
        return SimpleNamespace(rgb=np.stack(rgb), disparity=np.stack(maps), finite=np.array(finite))


def misbehave(text: str) -> None:
    if "RAISE" in text:
        raise RuntimeError("the stand-in was asked to raise")
    if "KILL" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "HANG" in text:
        threading.Event().wait()


class StandInWorker(GenerationWorker):
    """The real worker with the stand-in model."""

    def load(self):
        return StandInPipeline(self.context.height, self.context.width)


class HealedPipeline(StandInPipeline):
    """The stand-in without faults: no prompt makes it fail."""

    def __call__(self, *, prompt=None, **arguments):
        return super().__call__(prompt=prompt and ["fine"] * len(prompt), **arguments)


class HealedWorker(StandInWorker):
    """The worker with the stand-in without faults."""

    def load(self):
        return HealedPipeline(self.context.height, self.context.width)


class RecordingWorker(StandInWorker):
    """Logs each sample to generate as "<pid> <node> <sample id>", to a file beside the first input."""

    seconds = 0.0  # per sample

    def generate(self, part):
        import ray

        node = ray.get_runtime_context().get_node_id()
        for sample in part:
            with open(calls_file(self.context.spec), "a") as file:  # appending a short line is atomic
                file.write(f"{os.getpid()} {node} {sample.id}\n")
            threading.Event().wait(self.seconds)
        return super().generate(part)


class SlowWorker(RecordingWorker):
    """A worker that is slow enough to be killed at work."""

    seconds = 0.05


class GatedWorker(RecordingWorker):
    """Each process begins only as many samples as a file beside the first input allows; see `open_gate`."""

    begun = 0

    def generate(self, part):
        while self.begun >= int(pathlib.Path(gate_file(self.context.spec)).read_text()):
            threading.Event().wait(0.05)
        self.begun += len(part)
        return super().generate(part)


def gate_file(spec) -> str:
    return spec.input.uri[0] + ".gate"


def open_gate(spec, samples: int) -> None:
    """Let each GatedWorker begin parts until it has begun this number of samples."""
    new = pathlib.Path(gate_file(spec) + ".new")
    new.write_text(str(samples))
    new.replace(gate_file(spec))


def calls_file(spec) -> str:
    return spec.input.uri[0] + ".calls"


def read_calls(spec) -> list[tuple[str, str, str]]:
    """Return (pid, node, sample id) of each sample that a RecordingWorker was to generate."""
    try:
        with open(calls_file(spec)) as file:
            return [tuple(line.split()) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


class DyingAtStart(StandInWorker):
    """A worker that dies while it loads the model."""

    def load(self):
        os.kill(os.getpid(), signal.SIGKILL)
