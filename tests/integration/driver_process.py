"""Drivers (driver.py) as processes that tests start, wait for and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray

from pipelines.spec.job import JobSpec

ROOT = Path(__file__).parents[2]


def start_driver(spec: JobSpec, folder: Path, worker_class: str = "") -> subprocess.Popen[bytes]:
    """A driver of its own process group; it joins the session's Ray by its address."""
    job = folder / "job.json"
    job.write_text(json.dumps({"spec": spec.as_given(), "worker_class": worker_class}))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.integration.driver", str(job)]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen[bytes], folder: Path, seconds: float) -> None:
    """Return when the condition holds; fail with the driver's log where it ended first or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, (folder / "driver.log").read_text()[-3000:]
        assert time.monotonic() < deadline, (folder / "driver.log").read_text()[-3000:]
        time.sleep(0.02)


def kill(driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the driver and all of its process group."""
    if driver.poll() is None:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
