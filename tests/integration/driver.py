"""A driver in a process of its own, to be killed: python driver.py SPEC.json. It joins the Ray of the test session."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import ray

from pipelines.run.job import run_job
from pipelines.spec.job import load_spec
from tests import stand_in


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    with open(sys.argv[1]) as file:
        job = json.load(file)
    run(job["spec"], job["worker_class"])


def run(spec: dict[str, Any], worker_class: str = "", address: str = "") -> None:
    """Run a job with one of the stand-ins, or with the real weights, on the Ray at an address."""
    if address:
        os.environ["RAY_ADDRESS"] = address
    ray.cloudpickle.register_pickle_by_value(sys.modules[stand_in.__name__])
    run_job(load_spec(spec), worker_class=getattr(stand_in, worker_class) if worker_class else None)


if __name__ == "__main__":
    main()
