"""One history: each operation runs in a new process and is followed by the account.

Concurrent operations take turns: exactly one process runs at any time, until its next step (steps.py), and the seed of
the operation determines which one continues (turns.py). So a seed gives the same history again.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import select
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jointdit.errors import InputError, JointDiTError
from tests.chaos.history_account import Account, Problem
from tests.chaos.objects import objects_of
from tests.chaos.operations import perform
from tests.chaos.plots import Operation, Plot
from tests.chaos.steps import Steps, take_control
from tests.chaos.turns import CREATE, STEP, TURNING, take_turns
from tests.chaos.world import CHANGES, World

STEP_SECONDS = 60.0  # a process that takes longer for a step is hung
State = Literal["done", "refused", "refused input", "killed", "failed", "hung"]
END = (
    Operation("run", 1),
    Operation("validate", 2),
    Operation("retry", 3, {"outcomes": ["quarantined"]}),
    Operation("run", 4, {"heals": True, "describes": True}),
    Operation("gc", 5),
    Operation("validate", 6, {"strict": True}),
)


@dataclass(frozen=True)
class Result:
    """The result of one operation's process."""

    state: State
    text: str
    steps: int = 0


@dataclass
class Story:
    """The events of a history; `problems` is empty if it did not fail."""

    lines: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)  # of operations, by kind and state
    versions: int = 0

    @property
    def kind(self) -> str:
        """The kind of the first problem; "" without problems."""
        return self.problems[0].kind if self.problems else ""


class Actor:
    """A forked process that performs one operation; with `takes_turns` it waits before each step."""

    def __init__(self, operation: Operation, plot: Plot, uris: Sequence[str], output: str, takes_turns: bool) -> None:
        self.operation = operation
        self.result: Result | None = None
        self.next_step: bytes | None = STEP
        self._read, to_parent = os.pipe()
        from_parent, self._write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._read)
            os.close(self._write)
            _act(operation, plot, uris, output, to_parent, from_parent, takes_turns)
        os.close(to_parent)
        os.close(from_parent)
        if takes_turns:
            self._wait()

    def go_on(self) -> None:
        """Let the process take a step, and wait until its next step or its end."""
        os.write(self._write, b".")
        self._wait()

    def finish(self) -> Result:
        """Wait for the end of a process that does not take turns."""
        self._wait()
        assert self.result is not None
        return self.result

    def _wait(self) -> None:
        received = b""
        while True:
            if not select.select([self._read], [], [], STEP_SECONDS)[0]:
                os.kill(self.pid, signal.SIGKILL)
                self._end(Result("hung", f"no step within {STEP_SECONDS:.0f} s"))
                return
            piece = os.read(self._read, 65536)
            if piece in (STEP, TURNING, CREATE) and not received:
                self.next_step = piece
                return
            received += piece
            if not piece:
                break
        if received:
            self._end(Result(**json.loads(received)))
        else:
            death = self.operation.death is not None
            self._end(Result("killed" if death else "failed", "" if death else "the process died"))

    def _end(self, result: Result) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._read)
        os.close(self._write)
        self.result, self.next_step = result, None


def _act(
    operation: Operation,
    plot: Plot,
    uris: Sequence[str],
    output: str,
    to_parent: int,
    from_parent: int,
    takes_turns: bool,
) -> None:
    """Perform the operation in the actor's process, which then ends."""
    result = Result("failed", "")
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)

        def turn(kind: bytes) -> None:
            os.write(to_parent, kind)
            os.read(from_parent, 1) or os._exit(1)

        steps = Steps(turn if takes_turns else None, operation.death, operation.failure)
        take_control(steps, f"{operation.seed}/tokens")
        if takes_turns:
            turn(STEP)
        try:
            result = Result("done", perform(operation, plot, uris, output), steps.count)
        except InputError as error:
            result = Result("refused input", str(error), steps.count)
        except (JointDiTError, OSError) as error:  # the command line prints these as one message
            result = Result("refused", f"{type(error).__name__}: {error}", steps.count)
        except BaseException:  # noqa: BLE001 - the boundary of a process
            result = Result("failed", traceback.format_exc()[-3000:], steps.count)
        os.write(to_parent, json.dumps(result.__dict__).encode())
    finally:
        os._exit(0)


def play(plot: Plot, folder: Path, output: str | None = None) -> Story:
    """Play a history in an emptied folder until its end or the first problem.

    `output` is the address of the dataset, by default in the folder; it must be empty.
    """
    with _empty(folder):
        story, world = Story(), World(folder)
        world.begin(plot.seed)
        address = output or str(folder / "out")
        account = Account(objects_of(address), world.contents)
        for operation in plot.operations:
            if not _go_on(story, operation, plot, world, address, account):
                break
        else:
            _end(story, plot, world, address, account)
        story.versions = len(account.versions)
        return story


def _end(story: Story, plot: Plot, world: World, output: str, account: Account) -> None:
    """Run without faults, retry what is quarantined, and validate."""
    for number, operation in enumerate(END):
        if not _go_on(story, operation, plot, world, output, account):
            return
        if story.lines[-1].endswith("refused input"):
            return  # such as rows with the same id in two files: there is no expected end
        if operation.kind == "run":
            story.problems += account.check_end(world.listed(), strict=number > 0)
        if story.problems:
            return


def _go_on(story: Story, operation: Operation, plot: Plot, world: World, output: str, account: Account) -> bool:
    """Perform one operation and take the account; return False if there are problems."""
    story.lines.append(str(operation))
    published = story.states["publish done"]
    for part, result in _do(operation, plot, world, output):
        story.states[f"{part.kind} {result.state}"] += 1
        story.lines.append(f"    {part.kind}: {result.text} ({result.steps} steps) {result.state}")
        story.problems += _problems_of(part, result, is_end=operation in END, has_job=bool(account.plans))
    story.problems += account.check()
    if operation.kind == "publish" and story.states["publish done"] > published and not story.problems:
        story.problems += account.check_published()
    return not story.problems


def _problems_of(operation: Operation, result: Result, is_end: bool, has_job: bool) -> Iterator[Problem]:
    if result.state == "hung":
        yield Problem("hang", f"{operation}: {result.text}")
    elif result.state == "failed":
        is_validate = "VALIDATE" in result.text
        if not (is_validate and operation.failure):  # a failing call is a problem that validate reports
            yield Problem("validate" if is_validate else "traceback", f"{operation}: {result.text}")
    elif is_end and has_job and result.state == "refused":
        yield Problem("stuck", f"{operation}: {result.text}")


def _do(operation: Operation, plot: Plot, world: World, output: str) -> list[tuple[Operation, Result]]:
    if operation.kind in CHANGES:
        return [(operation, Result("done", world.change(operation.kind, operation.seed)))]
    if not operation.parts:
        return [(operation, Actor(operation, plot, world.uris, output, takes_turns=False).finish())]
    return _take_turns(operation, plot, world, output)


def _take_turns(operation: Operation, plot: Plot, world: World, output: str) -> list[tuple[Operation, Result]]:
    draw = random.Random(f"{operation.seed}/turns")
    results: list[tuple[Operation, Result]] = []
    changes = [part for part in operation.parts if part.kind in CHANGES]
    work = [part for part in operation.parts if part.kind not in CHANGES]
    actors = [Actor(part, plot, world.uris, output, takes_turns=True) for part in work]
    for _ in take_turns(actors, draw):
        if changes and draw.random() < 0.2:
            change = changes.pop(0)
            results.append((change, Result("done", world.change(change.kind, change.seed))))
    results += [(change, Result("done", world.change(change.kind, change.seed))) for change in changes]
    return results + [(actor.operation, actor.result) for actor in actors if actor.result]


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[None]:
    """Empty the folder for the block and delete it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    gc.freeze()  # forks share these objects
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
