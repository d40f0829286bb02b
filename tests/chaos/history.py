"""One history: its operations, each in a process of its own, and the account after each.

Operations at once take turns: of all processes exactly one runs at any time, until its next step (steps.py), and the
seed of the operation says which one goes on (turns.py). So a seed gives the same history again.
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

PATIENCE_SECONDS = 60.0  # for one step: more is a hang
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
    """What became of one operation's process."""

    state: State
    told: str
    steps: int = 0


@dataclass
class Story:
    """What happened in a history; `problems` is empty where nothing was wrong."""

    lines: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)  # of operations, by kind and state
    versions: int = 0

    @property
    def kind(self) -> str:
        """The kind of its first problem; "" where there is none."""
        return self.problems[0].kind if self.problems else ""


class Actor:
    """A forked process that does one operation; where it `takes_turns`, it waits before each step."""

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
            _be_actor(operation, plot, uris, output, to_parent, from_parent, takes_turns)
        os.close(to_parent)
        os.close(from_parent)
        if takes_turns:
            self._wait()

    def go_on(self) -> None:
        """Let it take a step, and wait until it stands before the next one, or has ended."""
        os.write(self._write, b".")
        self._wait()

    def finish(self) -> Result:
        """Wait for the end of one that takes no turns."""
        self._wait()
        assert self.result is not None
        return self.result

    def _wait(self) -> None:
        told = b""
        while True:
            if not select.select([self._read], [], [], PATIENCE_SECONDS)[0]:
                os.kill(self.pid, signal.SIGKILL)
                self._end(Result("hung", f"nothing happened for {PATIENCE_SECONDS:.0f} s"))
                return
            piece = os.read(self._read, 65536)
            if piece in (STEP, TURNING, CREATE) and not told:
                self.next_step = piece
                return
            told += piece
            if not piece:
                break
        if told:
            self._end(Result(**json.loads(told)))
        else:
            death = self.operation.death is not None
            self._end(Result("killed" if death else "failed", "" if death else "its process died"))

    def _end(self, result: Result) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._read)
        os.close(self._write)
        self.result, self.next_step = result, None


def _be_actor(
    operation: Operation, plot: Plot, uris: Sequence[str], output: str, tell: int, hear: int, takes_turns: bool
) -> None:
    """The life of an actor's process; it never returns."""
    result = Result("failed", "")
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)

        def turn(kind: bytes) -> None:
            os.write(tell, kind)
            os.read(hear, 1) or os._exit(1)

        steps = Steps(turn if takes_turns else None, operation.death, operation.failure)
        take_control(steps, f"{operation.seed}/tokens")
        if takes_turns:
            turn(STEP)
        try:
            result = Result("done", perform(operation, plot, uris, output), steps.count)
        except InputError as error:
            result = Result("refused input", str(error), steps.count)
        except (JointDiTError, OSError) as error:  # the command line tells them in one sentence
            result = Result("refused", f"{type(error).__name__}: {error}", steps.count)
        except BaseException:  # noqa: BLE001 - the boundary of a process
            result = Result("failed", traceback.format_exc()[-3000:], steps.count)
        os.write(tell, json.dumps(result.__dict__).encode())
    finally:
        os._exit(0)


def play(plot: Plot, folder: Path, output: str | None = None) -> Story:
    """Play a history in a folder, which is emptied first, until its end or the first problem.

    `output`: where the dataset goes, if not into the folder; it must be empty.
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
    """An undisturbed run, what was quarantined made again, and validate."""
    for number, operation in enumerate(END):
        if not _go_on(story, operation, plot, world, output, account):
            return
        if story.lines[-1].endswith("refused input"):
            return  # such as rows of one id in two files: nothing is to be expected
        if operation.kind == "run":
            story.problems += account.check_end(world.listed(), strict=number > 0)
        if story.problems:
            return


def _go_on(story: Story, operation: Operation, plot: Plot, world: World, output: str, account: Account) -> bool:
    """Do one operation and take the account; False where something is wrong."""
    story.lines.append(str(operation))
    for each, result in _do(operation, plot, world, output):
        story.states[f"{each.kind} {result.state}"] += 1
        story.lines.append(f"    {each.kind}: {result.told} ({result.steps} steps) {result.state}")
        story.problems += _problems_of(each, result, is_end=operation in END, has_job=bool(account.plans))
    story.problems += account.check()
    return not story.problems


def _problems_of(operation: Operation, result: Result, is_end: bool, has_job: bool) -> Iterator[Problem]:
    if result.state == "hung":
        yield Problem("hang", f"{operation}: {result.told}")
    elif result.state == "failed":
        is_validate = "VALIDATE" in result.told
        if not (is_validate and operation.failure):  # it tells what it could not read
            yield Problem("validate" if is_validate else "traceback", f"{operation}: {result.told}")
    elif is_end and has_job and result.state == "refused":
        yield Problem("stuck", f"{operation}: {result.told}")


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
    """The folder, empty before and gone after."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    gc.freeze()  # what is forked shares it
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
