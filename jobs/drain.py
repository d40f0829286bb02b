"""Drain a Ray node before it ends: `python -m jobs.drain --seconds 110`, run on the node itself.

A pod's preStop hook runs it before the node's Ray is stopped. It tells the cluster to drain the node: Ray places no new
work there, and drivers move shards that were not started (pipelines/engine/dispatch.py). It returns when no task or
actor holds GPUs or CPUs of the node, or when the time is over. Ray's own `ray drain-node` does not wait.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

POLL_SECONDS = 1.0


def drain_node(address: str, node: str, seconds: float, message: str = "the node is about to end") -> None:
    """Tell the Ray cluster at `address` that the node with this id ends after `seconds`.

    Raises:
        RuntimeError: the cluster refuses.
    """
    import ray
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + seconds) * 1000)
    accepted, why = ray._raylet.GcsClient(address=address).drain_node(node, reason, message, deadline)
    if not accepted:
        raise RuntimeError(f"the cluster refuses to drain node {node}: {why}")


def is_empty(node: str) -> bool:
    """Return whether no task or actor holds GPUs or CPUs of a node, or the node is gone."""
    from ray._private.state import available_resources_per_node, total_resources_per_node

    total = total_resources_per_node().get(node, {})
    free = available_resources_per_node().get(node, total)
    return all(free.get(name, 0.0) >= total.get(name, 0.0) for name in ("CPU", "GPU"))


def wait_until_empty(node: str, until: float) -> bool:
    """Wait until a node is empty or the monotonic clock reaches `until`; return whether it is empty."""
    while not is_empty(node):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def main() -> int:
    """Drain the node that this process runs on, and wait until it is empty. Return 0, also if time ran out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="Seconds until the node is stopped.")
    seconds: float = parser.parse_args().seconds
    until = time.monotonic() + seconds
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address="auto", log_to_driver=False)
    context = ray.get_runtime_context()
    node = context.get_node_id()
    drain_node(context.gcs_address, node, seconds)
    print(f"node {node} takes no new work", flush=True)
    emptied = wait_until_empty(node, until)
    print(f"node {node} is {'empty' if emptied else 'not empty, and its time is over'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
