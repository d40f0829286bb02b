"""Fixtures for small jobs on the session's Ray with the stand-in model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.run.job import RunSummary, run_job
from pipelines.spec.job import JobSpec, load_spec
from tests import stand_in

# Ray workers cannot import from tests/, so the stand-in is pickled by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[stand_in.__name__])

JobMaker = Callable[..., JobSpec]


# The local folder is slow-only here, because all other tests of jobs write to local folders.
@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.slow), "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output on a local folder and on S3."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3").make_bucket() + "/out"


@pytest.fixture
def make_spec(tmp_path: Path) -> JobMaker:
    """Return make_spec(prompts, **sections): a joint job on a text file; `sections` override those of the spec."""

    def make(prompts: list[str] | None = None, **sections: Any) -> JobSpec:
        if prompts is not None:
            (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
        data: dict[str, Any] = {
            "task": "joint",
            "model": {"name": "tiny", "steps": 1, "height": 32, "width": 32, "batch_size": 2},
            "input": {"uri": str(tmp_path / "prompts.txt")},
            "output": {"uri": str(tmp_path / "out"), "shard_rows": 4},
            "quality": {"max_quarantined_fraction": 1.0},
            "resources": {"workers": 1, "stall_seconds": 50.0},
        }
        for name, section in sections.items():
            data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
        return load_spec(data)

    return make


@pytest.fixture
def run_stand_in(ray_cluster: None) -> Callable[..., RunSummary]:
    """Return run_job on the session's Ray with the stand-in model."""

    def run(spec: JobSpec, worker_class: type = stand_in.StandInWorker) -> RunSummary:
        return run_job(spec, worker_class=worker_class)

    return run
