"""Running benches: each in a process of its own where there are several, so that none finds what another left."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from rich.table import Table

from jobs.report import console, say
from jobs.tools.bench import BENCHES
from jobs.tools.bench.frame import Line, Measure, Settings
from jobs.tools.bench.machine import commit, load, machine
from jobs.tools.bench.record import COLUMNS, Result, cells, write_results
from jointdit.errors import PermanentError
from pipelines.ledger.entries import now

PATIENCE = 12  # times a bench's own seconds: after that it hangs, also on a machine with much else to do


def measure_each(names: Sequence[str], *, quick: bool, as_json: bool, write: bool, apart: bool) -> bool:
    """Run benches, show what they find, and write it down if asked; whether none failed.

    Raises:
        PermanentError: of a bench alone, why it failed.
    """
    results = []
    with json_alone() if as_json else contextlib.nullcontext(sys.stdout) as answer:
        for name in names:
            result = in_a_process(name, quick) if apart else run(name, quick)
            results.append(result)
            if not as_json:
                show(result)
            if write:  # each at once: what one found is kept whatever becomes of the next
                written = write_results([result], "jointdit bench --all --write")
                say(f"written: {written}")
        if as_json:
            content = [result.to_json() for result in results]
            print(json.dumps(content[0] if len(content) == 1 else content, indent=1), file=answer)
    return not any(result.error for result in results)


@contextlib.contextmanager
def json_alone() -> Iterator[TextIO]:
    """The standard output for an answer; what else is printed, as by Ray's workers, goes to the errors."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield answer
        finally:
            sys.stdout.flush()
            answer.flush()
            os.dup2(answer.fileno(), 1)


def run(name: str, quick: bool = False) -> Result:
    """Run a bench here. Raises PermanentError where its sides did different work, or it cannot run here."""
    entry = BENCHES[name]
    measure: Measure = importlib.import_module(f"jobs.tools.bench.{entry.module}").measure
    before, started = load(), time.monotonic()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="jointdit-bench-") as folder:
        lines += measure(Settings(Path(folder), entry.seconds, quick))
    if not lines:
        raise PermanentError(f"the bench {name} measured nothing: mend it.")
    return Result(name, tuple(lines), round(time.monotonic() - started, 1), now(), commit(), machine(), before, quick)


def in_a_process(name: str, quick: bool = False) -> Result:
    """Run a bench in a process of its own; one that fails or hangs becomes a result with an error."""
    before, started, seconds = load(), time.monotonic(), BENCHES[name].seconds
    command = [sys.executable, "-m", "jobs.cli", "bench", name, "--json", *(["--quick"] if quick else [])]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=PATIENCE * seconds + 60)
        if process.returncode == 0:
            return Result.from_json(json.loads(output))
        last = errors.strip().splitlines()
        error = last[-1].removeprefix("Error: ") if last else f"it ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        error = f"it did not end within {PATIENCE * seconds + 60:g} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        process.wait()
    took = round(time.monotonic() - started, 1)
    return Result(name, (), took, now(), commit(), machine(), before, quick, error)


def show(result: Result) -> None:
    """A table of a bench."""
    title = f"{result.name}{', quick: figures mean nothing' if result.quick else ''}, {result.seconds:.0f} s"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in COLUMNS[1:]:
        table.add_column(column)
    for line in result.lines:
        table.add_row(*(text.replace("**", "") for text in cells(line)))
    if result.error:
        table.add_row(f"failed: {result.error}", "", "", "", "", "no")
    console.print(table)
    for line in result.lines:
        for note in line.notes:
            say(f"  {line.what}: {note}")
