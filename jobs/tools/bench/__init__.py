"""Benches: how fast it is, always beside something measured in the same run. `jointdit bench --list` names them.

    frame.py      two sides by turns, medians with spread, ratios, reach; fails if the sides did different work
    record.py     what a bench found, with machine and commit, as JSON and as the table in jobs/tools/BENCH.md
    tried.py      of what is not reached: what holds it, and what was tried
    machine.py    which machine, which versions, which commit
    command.py    `jointdit bench`
    the others    one file a bench, each with `measure(settings)`, which yields lines of the table as it has them

A new bench is a file with `measure` and an entry in BENCHES. This file is imported by the command line, so it imports
nothing heavy, and a bench is imported when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """One entry of the list."""

    module: str  # in jobs.tools.bench
    question: str  # what is measured
    compared_with: str  # the other side, or "-"
    seconds: float  # what it may take on two quiet cores
    in_all: bool = True  # part of `make bench`


_LOOP = "the bare loop of the same model on the same batches"

BENCHES = {
    "pipeline": Bench("pipeline", "rows/s of a whole job, warm, tiny model, one worker", _LOOP, 180),
    "gpu-like": Bench("gpu_like", "the same with a model that waits as a GPU would, 512 x 512", "waiting alone", 220),
    "raydata": Bench("raydata", "rows/s of the same job", "the same job on Ray Data", 160),
    "finish": Bench("finish", "rows/s that one core scores, encodes and writes at 512 x 512", "a GPU's 0.3 rows/s", 30),
    "plan": Bench("plan", "rows/s and memory of a plan of 100 million rows", "-", 60),
    "resume": Bench("resume", "seconds until a driver knows what is left of 100 k shards", "with a roll-up", 150),
    "resume-million": Bench("resume_million", "the same of a million shards", "with a roll-up", 240, False),
    "driver": Bench("driver", "CPU time and memory that the driver takes a shard", "-", 60),
    "startup": Bench("startup", "seconds until `jointdit --help` and `plan` have answered", "python -c pass", 20),
    "forward": Bench(
        "forward",
        "the network's forward pass, time over operations, at 256, 1,024 and 4,096 image tokens",
        "FLUX of diffusers on the doubled batch",
        150,
    ),
    "attention": Bench(
        "attention", "the joint connection alone, time and memory", "two attention calls, split and concatenated", 60
    ),
    "lora": Bench("lora", "a Linear with the depth half's LoRA, time and memory", "split and concatenate", 60),
    "train-step": Bench(
        "train_step",
        "forward and backward, time over operations",
        "FLUX on the doubled batch with as many trained parameters",
        80,
    ),
    "steps": Bench(
        "steps",
        "error and time of depth by steps and condition_refresh, tiny checkpoint, held-out scenes",
        "20 steps",
        180,
    ),
    "text": Bench("text", "depth with the empty prompt encoded once", "encoding it for every batch", 20),
    "compile": Bench("compiled", "blocks by torch.compile, `model.compile: true`", "the same network without", 60),
}
