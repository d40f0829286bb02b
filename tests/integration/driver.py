"""A driver in a process of its own, to be killed: python driver.py SPEC.json. It joins the Ray of the test session."""

from __future__ import annotations

import json
import logging
import sys

import ray

from pipelines.run import run_job
from pipelines.spec import load_spec
from tests import stand_in


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    ray.cloudpickle.register_pickle_by_value(sys.modules[stand_in.__name__])
    with open(sys.argv[1]) as file:
        job = json.load(file)
    worker_class = getattr(stand_in, job["worker_class"]) if job["worker_class"] else None
    run_job(load_spec(job["spec"]), worker_class=worker_class)


if __name__ == "__main__":
    main()
