"""A driver of the storm, started with `python -m tests.chaos.driver JOB.json`; uses RAY_ADDRESS."""

from __future__ import annotations

import json
import logging
import sys

import ray

from jointdit.errors import JointDiTError
from pipelines.run.job import run_job
from pipelines.spec.job import load_spec
from tests import stand_in
from tests.chaos import models


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    for module in (stand_in, models):  # Ray workers cannot import from tests/
        ray.cloudpickle.register_pickle_by_value(sys.modules[module.__name__])
    with open(sys.argv[1]) as file:
        job = json.load(file)
    try:
        run_job(load_spec(job["spec"]), worker_class=getattr(models, job["worker"]) if job["worker"] else None)
    except JointDiTError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
