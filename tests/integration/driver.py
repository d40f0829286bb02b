"""A driver that tests start and kill: python -m tests.integration.driver SPEC.json."""

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
    """Run a job on the Ray at an address, with a stand-in worker or with the real weights."""
    if address:
        os.environ["RAY_ADDRESS"] = address
    ray.cloudpickle.register_pickle_by_value(sys.modules[stand_in.__name__])
    run_job(load_spec(spec), worker_class=getattr(stand_in, worker_class) if worker_class else None)


if __name__ == "__main__":
    main()
