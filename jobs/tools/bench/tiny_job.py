"""A job on the tiny checkpoint, which several benches compare.

Prompts in, PNG images and depth in Parquet out. Each side runs the same batches on the same model with one thread, and
runs one batch before its clock starts. Outputs are compared by a digest of all pixels.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.tools.bench.frame import Turn
from jobs.tools.bench.local_runs import chunks, last_commit, prompts, spec_of
from pipelines.model.loading import load_pipeline
from pipelines.run.job import RunSummary, run_job
from pipelines.spec.job import JobSpec, ModelSpec
from pipelines.stages.generate import GenerationWorker
from pipelines.stages.read import sample_seed

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # to be set before torch is imported
SEED = 7


@dataclass(frozen=True)
class TinyJob:
    """The work of one turn, with one input file per shard."""

    folder: Path
    rows: int
    shard_rows: int
    batch_size: int
    steps: int

    def write_input(self) -> None:
        """Write Parquet files with ids and prompts."""
        (self.folder / "in").mkdir(parents=True)
        for number, part in enumerate(chunks(list(zip(self.ids, prompts(self.rows), strict=True)), self.shard_rows)):
            columns = dict(zip(("id", "prompt"), map(list, zip(*part, strict=True)), strict=True))
            pq.write_table(pa.table(columns), self.folder / "in" / f"{number:05d}.parquet")

    @property
    def ids(self) -> list[str]:
        """The ids of the rows, in order."""
        return [f"{number:06d}" for number in range(self.rows)]

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the model's call besides prompts and seeds."""
        return {"task": "joint", "num_inference_steps": self.steps, "guidance_scale": 3.5}

    def spec(self, name: str) -> JobSpec:
        """Return the job's spec with `name` as its output folder."""
        return spec_of(
            self.folder / name,
            "joint",
            self.folder / "in",
            seed=SEED,
            model={"steps": self.steps, "batch_size": self.batch_size},
            output={"shard_rows": self.shard_rows},
            resources={"workers": 1, "device": "cpu"},
        )


def seed_of(identifier: str) -> int:
    """Return the seed that the engine gives to the first sample of a row."""
    return sample_seed(SEED, identifier, 0)


def warm(pipe: Any, job_settings: dict[str, Any], batch_size: int) -> float:
    """Run one batch; return the seconds."""
    started = time.perf_counter()
    pipe(prompt=prompts(batch_size), seeds=list(range(batch_size)), **job_settings)
    return time.perf_counter() - started


def load_alone() -> Any:
    """Load the model in this process with one thread."""
    import torch

    torch.set_num_threads(1)
    return load_pipeline(ModelSpec(), "cpu")


class WarmWorker(GenerationWorker):
    """A worker with one thread that runs one batch and starts the clock before it is ready."""

    def set_up(self) -> str:
        """Set up the worker, run one batch and start the clock."""
        self.threads = 1
        host = super().set_up()
        spec = self.context.spec.model
        settings = {"task": "joint", "num_inference_steps": spec.steps, "guidance_scale": spec.guidance}
        warm(self.pipe, settings, spec.batch_size)
        if self.stopwatch is not None:
            self.stopwatch.take()
        note_ready(self.context.storage.path(""))
        return host


def note_ready(output: str) -> None:
    """Start the clock of a side: write the time to a file beside its output."""
    path = Path(f"{output.rstrip('/')}.ready")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(repr(time.time()))


def ready_at(output: str) -> float:
    """Return the start of the clock in seconds since 1970."""
    return float(Path(f"{output.rstrip('/')}.ready").read_text())


def run_engine(job: TinyJob, name: str) -> tuple[Turn, RunSummary]:
    """Run the job; the turn's value is rows/s until the last commit, `whole` that until the end of the run."""
    spec = job.spec(name)
    summary = run_job(spec, worker_class=WarmWorker, profile=True)
    ended, output = time.time(), spec.output.uri
    ready = ready_at(output)
    committed = last_commit(output, -(-job.rows // job.shard_rows))
    tables = [pq.read_table(path) for path in sorted(Path(output, "data").glob("*.parquet"))]
    detail = {"whole": job.rows / (ended - ready), "published": ended - committed}
    return Turn(job.rows / (committed - ready), work_of(tables), detail), summary


def work_of(tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Return rows, bytes of images and a pixel digest, in the order of ids, of tables with id, rgb and depth."""
    rows = [row for table in tables for row in table.select(["id", "rgb", "depth"]).to_pylist()]
    rows.sort(key=lambda row: row["id"])
    arrays = ((_decoded(row["rgb"]["bytes"]), _decoded(row["depth"]["bytes"])) for row in rows)
    size = sum(len(row[name]["bytes"]) for row in rows for name in ("rgb", "depth"))
    return {"rows": len(rows), "bytes of images": size, "pixels": digest_of(arrays)}


def digest_of(arrays: Iterable[Sequence[np.ndarray[Any, Any]]]) -> str:
    """Return the first 16 digits of the SHA-256 of arrays."""
    digest = hashlib.sha256()
    for group in arrays:
        for array in group:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def levels_of(disparity: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return disparity in the 16 bits in which it is stored."""
    return np.rint(disparity.astype(np.float64) * 65535).astype(np.uint16)


def _decoded(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)))
