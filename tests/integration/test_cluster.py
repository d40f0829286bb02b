"""The number of workers on a cluster, and the start of Ray."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from jointdit.errors import PermanentError
from pipelines.engine.cluster import TASK_CPUS, _fitting, _gpu_room, _share, plan_workers
from pipelines.spec.job import ResourcesSpec


def test_workers_follow_the_cpus_where_there_is_no_gpu(ray_cluster: None) -> None:
    cpus = ray.cluster_resources()["CPU"]
    plan = plan_workers(ResourcesSpec())
    assert 1 <= plan.workers <= cpus
    assert (plan.device, plan.num_gpus) == ("cpu", 0.0)
    for workers in ("auto", 1, 2, 3, 7):
        plan = plan_workers(ResourcesSpec(workers=workers))
        assert plan.workers * plan.num_cpus <= cpus - 2 * TASK_CPUS, "read and finish have room"
        assert plan.threads >= 1


def test_task_labels_that_no_node_has_are_an_error(ray_cluster: None) -> None:
    (node,) = ray.nodes()
    assert plan_workers(ResourcesSpec(task_labels={"ray.io/node-id": node["NodeID"]})).workers >= 1
    with pytest.raises(PermanentError, match="no node of the cluster has pool=tasks: start Ray there with --labels"):
        plan_workers(ResourcesSpec(task_labels={"pool": "tasks"}))


def test_workers_wait_for_gpus_of_a_growing_cluster(ray_cluster: None) -> None:
    plan = plan_workers(ResourcesSpec(workers=8, device="cuda", gpus_per_worker=0.5))
    assert (plan.workers, plan.num_gpus, plan.device) == (8, 0.5, "cuda")
    with pytest.raises(PermanentError, match="the cluster has none yet: give the number of workers"):
        plan_workers(ResourcesSpec(device="cuda"))


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([2.0], 1, 1.5),
        ([2.0], 2, 0.75),
        ([2.0], 7, 0.21),
        ([1.0, 1.0], 2, 0.5),
        ([4.0, 4.0], 3, 1.75),  # two on one node; with 2.33 each the third would not fit
        ([1.0, 1.0, 2.0], 3, 0.5),  # remainders of three nodes do not add up to a place
        ([64.0], 64, 0.9),
        ([16.0, 2.0], 3, 4.8),
        ([0.5], 1, 0.01),
    ],
)
def test_workers_fit_their_nodes_and_leave_room_for_tasks(nodes: list[float], workers: int, share: float) -> None:
    assert _share(nodes, workers) == share
    if share > 0.01:
        assert _fitting(nodes, share) >= workers
        assert all(cpus - _fitting([cpus], share) * share >= 2 * TASK_CPUS - 1e-6 for cpus in nodes)


def test_fewer_nodes_have_room_for_fewer_workers() -> None:
    share = _share([1.0, 1.0, 1.0], 3)
    assert [_fitting([1.0] * nodes, share) for nodes in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("share", "room"), [(1.0, 5), (0.5, 10), (0.4, 10), (0.3, 15), (0.1, 50)])
def test_a_share_of_a_gpu_is_on_one_gpu_of_a_node_that_stays(share: float, room: int) -> None:
    gpus = {"a": 4.0, "b": 1.0, "going": 4.0, "gone": 4.0, "cpus": 0.0}
    nodes = [{"NodeID": name, "Alive": name != "gone", "Resources": {"GPU": count}} for name, count in gpus.items()]
    assert _gpu_room(nodes, share, without={"going"}) == room


SCRIPT = """
import os
from pipelines.engine.cluster import connect, plan_workers
from pipelines.spec.job import ResourcesSpec
from jointdit.errors import PermanentError
with connect():
    import ray
    print(os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]) >= 32, ray.is_initialized())
    with connect():  # a nested connection leaves Ray open
        pass
    print(ray.is_initialized())
print(ray.is_initialized())
ray.init(address="local", num_gpus=4, num_cpus=8, include_dashboard=False, log_to_driver=False)
print(plan_workers(ResourcesSpec()))
print(plan_workers(ResourcesSpec(workers=3, gpus_per_worker=0.5)))
print(plan_workers(ResourcesSpec(gpus_per_worker=0.4)))
try:
    plan_workers(ResourcesSpec(workers=5))
except PermanentError as error:
    print(error)
"""


@pytest.mark.slow
def test_an_own_local_ray_and_a_cluster_with_gpus() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if not line.startswith("\x1b")]
    assert lines[:3] == ["token True True", "True", "False"]
    plan = "WorkerPlan(workers=4, num_gpus=1.0, num_cpus=1.0, task_cpus=1.0, threads=1, device='cuda', follows=True, "
    assert lines[3].startswith(plan)
    assert lines[4].startswith("WorkerPlan(workers=3, num_gpus=0.5")
    assert "follows=False, " in lines[4]
    assert lines[5].startswith("WorkerPlan(workers=8, num_gpus=0.4"), "two workers per GPU: no worker spans two GPUs"
    assert lines[6].startswith("resources: 5 workers of 1 GPUs do not fit into a cluster with 4: ask for fewer, or set")


@pytest.mark.timeout(120)
def test_an_unreachable_cluster_is_an_error() -> None:
    script = "from pipelines.engine.cluster import connect\nwith connect(): pass"
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode != 0
    assert "PermanentError: the Ray cluster at 127.0.0.1:9 cannot be reached" in done.stderr.replace(
        "jointdit.errors.", ""
    )


def test_permanent_errors_pass_through_ray(ray_cluster: None) -> None:
    @ray.remote(max_retries=0)
    def fails() -> None:
        raise PermanentError("one sentence.")

    reference = fails.remote()
    ray.wait([reference], timeout=50)
    with pytest.raises(PermanentError, match="one sentence"):
        ray.get(reference, timeout=5)
