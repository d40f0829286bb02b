"""Benchmarks, each compared with a baseline that is measured in the same run.

    frame.py      alternating turns of two sides, medians with quartiles, ratios, targets; rejects unequal work
    record.py     results with machine and commit, as JSON and as the table in jobs/tools/BENCH.md
    machine.py    machine, package versions, commit
    command.py    `jointdit bench`; running.py runs the benches
    the others    benches: functions `measure(settings)` that yield lines of the table

To add a bench, write such a function and add an entry to BENCHES. The command line imports this file, so it
imports nothing heavy; a bench is imported when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """One entry of the list."""

    module: str  # in jobs.tools.bench
    measures: str
    baseline: str  # "-" if there is none
    seconds: float  # time limit on two idle cores
    in_all: bool = True  # whether `make bench` runs it
    function: str = "measure"  # in the module


_LOOP = "a plain loop of the same model over the same batches"

BENCHES = {
    "pipeline": Bench("pipeline", "rows/s of a whole job, warm, tiny model, one worker", _LOOP, 180),
    "gpu-like": Bench("gpu_like", "the same with a model that sleeps for a GPU's time, 512 x 512", "sleep alone", 220),
    "raydata": Bench("raydata", "rows/s of the same job", "the same job on Ray Data", 160),
    "finish": Bench("finish", "rows/s that one core scores, encodes and writes, 512 x 512", "a GPU at 0.3 rows/s", 30),
    "plan": Bench("plan", "rows/s and memory of planning 100 million rows", "-", 60),
    "resume": Bench("resume", "seconds until a driver knows which of 100 k shards are pending", "a roll-up", 150),
    "resume-million": Bench(
        "resume", "the same for a million shards", "a roll-up", 240, in_all=False, function="measure_million"
    ),
    "near-duplicate": Bench("near_duplicates", "seconds and memory of the search for near-duplicates", "-", 60),
    "near-duplicate-corpus": Bench(
        "near_duplicates", "the same with 10 million samples", "-", 400, in_all=False, function="measure_corpus"
    ),
    "driver": Bench("driver", "CPU time and memory of the driver per shard", "-", 60),
    "startup": Bench("startup", "seconds that `jointdit --help` and `plan` take", "python -c pass", 20),
    "forward": Bench(
        "forward",
        "the network's forward pass, time per operation, at 256, 1,024 and 4,096 image tokens",
        "the FLUX of diffusers on the doubled batch",
        150,
    ),
    "attention": Bench(
        "attention", "the joint connection alone, time and memory", "two attention calls, split and concatenated", 60
    ),
    "lora": Bench("lora", "a Linear with LoRA on the depth half, time and memory", "split and concatenation", 60),
    "train-step": Bench(
        "train_step",
        "forward and backward, time per operation",
        "FLUX on the doubled batch with as many trainable parameters",
        80,
    ),
    "steps": Bench(
        "steps",
        "error and time of depth by steps and condition_refresh, tiny checkpoint, held-out scenes",
        "20 steps",
        180,
    ),
    "text": Bench(
        "steps",
        "depth with the empty prompt encoded once",
        "encoding the prompt for every batch",
        20,
        function="measure_text",
    ),
    "compile": Bench(
        "forward",
        "blocks with torch.compile (`model.compile: true`)",
        "blocks without it",
        60,
        function="measure_compiled",
    ),
}
