"""Check the objects of a dataset on a Ray cluster, for `jointdit validate --ray`.

Batches are tasks without a retry by Ray. A batch whose process or node is lost is submitted again; any other error of a
task is a fault of the check and is raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from jointdit.errors import PermanentError
from pipelines.dataset.validation.checks import Checked
from pipelines.dataset.validation.objects import Batch, CheckBatch, Checks, MapBatches
from pipelines.engine.cluster import connect

ATTEMPTS = 4  # at a batch whose process or node is lost
AHEAD = 2  # batches for each CPU of the cluster, running or waiting
POLL_SECONDS, GET_SECONDS = 1.0, 60.0


@contextlib.contextmanager
def on_ray() -> Iterator[MapBatches]:
    """Connect to the cluster at RAY_ADDRESS or start one on this machine; yield what checks batches there."""
    with connect():
        yield by_tasks


def by_tasks(check: CheckBatch, all_batches: Iterable[Batch]) -> Checks:
    """Check batches in tasks of the connected cluster, and yield them as they end.

    Raises:
        PermanentError: the processes of a batch were lost ATTEMPTS times.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(num_cpus=1, max_retries=0)(_check)
    reference, waiting = ray.put(check), iter(all_batches)
    running: dict[Any, tuple[Batch, int]] = {}  # reference of the result -> batch, attempt
    try:
        while True:
            room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
            for batch in islice(waiting, max(0, room)):
                running[task.remote(reference, batch)] = (batch, 1)
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            for result in done:
                batch, attempt = running.pop(result)
                try:
                    found = ray.get(result, timeout=GET_SECONDS)
                except RayTaskError:
                    raise
                except RayError as error:
                    if attempt == ATTEMPTS:
                        raise PermanentError(_lost(batch, error)) from error
                    running[task.remote(reference, batch)] = (batch, attempt + 1)
                else:
                    yield batch, found
    finally:
        for result in running:
            ray.cancel(result, force=True)


def _check(check: CheckBatch, batch: Batch) -> list[Checked]:
    return check(batch)


def _lost(batch: Batch, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    files = f"{batch[0].path} and {len(batch) - 1} more files"
    return (
        f"the process that checks {files} was lost {ATTEMPTS} times ({reason}): give the cluster more memory, or "
        "validate without --ray."
    )
