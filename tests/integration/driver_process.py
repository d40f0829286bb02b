"""Processes of driver.py that tests start, wait for and kill."""

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
    """Start a driver in a new process group; it joins the session's Ray."""
    job = folder / "job.json"
    job.write_text(json.dumps({"spec": spec.as_given(), "worker_class": worker_class}))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.integration.driver", str(job)]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen[bytes], folder: Path, seconds: float) -> None:
    """Wait until the condition holds; fail with the driver's log if the driver ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, (folder / "driver.log").read_text()[-3000:]
        assert time.monotonic() < deadline, (folder / "driver.log").read_text()[-3000:]
        time.sleep(0.02)


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kill the process group of a driver with SIGKILL."""
    if driver.poll() is None:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
