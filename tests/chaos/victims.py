"""The processes of a storm: its Ray cluster, its drivers, and what the reaper kills or stops."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def die_with_parent() -> None:
    """Let the kernel kill this new process when its parent ends (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


class Driver:
    """A driver process in a new process group."""

    def __init__(self, job: str, spec: dict[str, Any], worker: str, environment: dict[str, str], folder: Path) -> None:
        self.job = job
        self.log = folder / f"driver-{time.monotonic_ns()}-{job}.log"
        self.was_killed = False
        path = self.log.with_suffix(".json")
        path.write_text(json.dumps({"spec": spec, "worker": worker}))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", str(path)],
                cwd=ROOT,
                env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> bool:
        """Kill the process group with SIGKILL; return whether it was running."""
        if not self.is_running:
            return False
        self.was_killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return True

    def last_words(self) -> str:
        """Return the last line of the driver's log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "(the log is empty)"


class RayNodes:
    """A Ray cluster whose nodes can be killed and replaced."""

    def __init__(self, nodes: int, node: dict[str, Any], environment: dict[str, str], folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._settings = {**node, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        self._environment = environment
        with self._environ():
            # With shutdown_at_exit the cluster's processes end with this one, also if this one is killed.
            self._cluster = Cluster(
                initialize_head=True, head_node_args={**self._settings, "temp_dir": str(folder)}, shutdown_at_exit=True
            )
        self.address = self._cluster.address
        self._others: list[Any] = []  # nodes without the head, oldest first
        for _ in range(nodes - 1):
            self.add()

    def add(self) -> None:
        """Add a node."""
        with self._environ():
            self._others.append(self._cluster.add_node(**self._settings))

    def kill_one(self, draw: random.Random) -> bool:
        """Kill a node that is not the head, and add another one."""
        if not self._others:
            return False
        victim = self._others.pop(draw.randrange(len(self._others)))
        self._cluster.remove_node(victim, allow_graceful=False)
        self.add()
        return True

    def processes(self, kind: str) -> list[psutil.Process]:
        """Return the busy processes of Ray, `worker` actors or `task`s, oldest first."""
        processes = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = (process.cmdline() or [""])[0]
                is_worker = title.startswith("ray::") and "Worker" in title
                # The agents of a node are called ray::...Agent; without them the node dies.
                is_task = title.startswith("ray::") and not (is_worker or "IDLE" in title or "Agent" in title)
                if process.status() != psutil.STATUS_ZOMBIE and (is_worker if kind == "worker" else is_task):
                    processes.append((process.create_time(), process))
        return [process for _, process in sorted(processes, key=lambda item: item[0])]

    def shut_down(self) -> None:
        """End every process of the cluster."""
        self._cluster.shutdown()

    @contextlib.contextmanager
    def _environ(self) -> Iterator[None]:
        """Set the environment that new processes of Ray inherit."""
        before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


class Reaper:
    """Kills and stops processes and nodes at random moments, until all its deeds are done.

    Moments are counted in requests to the store, so that a slow machine gets as many kills for its work as a fast one.
    """

    def __init__(
        self, nodes: RayNodes, todo: Counter[str], seed: int, requests: Callable[[], int], pause: tuple[int, int]
    ) -> None:
        self.nodes = nodes
        self.done: Counter[str] = Counter()
        self._draw = random.Random(f"{seed}/reaper")
        self._todo = [deed for deed, count in todo.items() for _ in range(count)]
        self._draw.shuffle(self._todo)
        self._requests, self._pause = requests, pause
        self._due = requests() + self._draw.randint(*pause)

    def strike(self) -> str | None:
        """Do the next deed if it is due and there is a victim; return its name."""
        if not self._todo or self._requests() < self._due:
            return None
        deed = self._todo[0]
        if deed == "node killed":
            if not self.nodes.kill_one(self._draw):
                self._todo.pop(0)
                return None
        else:
            victims = self.nodes.processes("task" if deed.startswith("task") else "worker")
            if not victims:
                return None
            victim = self._draw.choice(victims)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGSTOP if deed.endswith("stopped") else signal.SIGKILL)
        self._todo.pop(0)
        self._due = self._requests() + self._draw.randint(*self._pause)
        self.done[deed] += 1
        return deed
