"""Run benches; several run in a process each, so that none affects the next."""

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
from jobs.tools.bench.frame import Line, Settings
from jobs.tools.bench.machine import commit, load, machine
from jobs.tools.bench.record import COLUMNS, Result, cells, write_results
from jointdit.errors import PermanentError
from pipelines.ledger.entries import now

TIMEOUT_FACTOR = 12  # times a bench's own seconds: a busy machine is slower, a hung bench is stopped


def run_benches(names: Sequence[str], *, quick: bool, as_json: bool, write: bool) -> bool:
    """Run benches, print their results and optionally write them; return whether all succeeded.

    Raises:
        PermanentError: a bench that runs in this process failed.
    """
    results, own_process = [], len(names) > 1 or write
    with json_alone() if as_json else contextlib.nullcontext(sys.stdout) as output:
        for name in names:
            result = run_in_process(name, quick) if own_process else run(name, quick)
            results.append(result)
            if not as_json:
                show(result)
            if write:  # after each bench: its result stays if the next one fails
                written = write_results([result], "jointdit bench --all --write")
                say(f"written: {written}")
        if as_json:
            content = [result.to_json() for result in results]
            print(json.dumps(content[0] if len(content) == 1 else content, indent=1), file=output)
    return not any(result.error for result in results)


@contextlib.contextmanager
def json_alone() -> Iterator[TextIO]:
    """Yield the standard output; everything else that is printed, also by Ray workers, goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield output
        finally:
            sys.stdout.flush()
            output.flush()
            os.dup2(output.fileno(), 1)


def run(name: str, quick: bool = False) -> Result:
    """Run a bench in this process. Raises PermanentError if its sides did different work or it cannot run here."""
    entry = BENCHES[name]
    measure = getattr(importlib.import_module(f"jobs.tools.bench.{entry.module}"), entry.function)
    before, started = load(), time.monotonic()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="jointdit-bench-") as folder:
        lines += measure(Settings(Path(folder), entry.seconds, quick))
    if not lines:
        raise PermanentError(f"the bench {name} measured nothing: fix the bench.")
    return Result(name, tuple(lines), round(time.monotonic() - started, 1), now(), commit(), machine(), before, quick)


def run_in_process(name: str, quick: bool = False) -> Result:
    """Run a bench in a new process; a bench that fails or hangs gives a result with an error."""
    before, started, limit = load(), time.monotonic(), TIMEOUT_FACTOR * BENCHES[name].seconds + 60
    command = [sys.executable, "-m", "jobs.cli", "bench", name, "--json", *(["--quick"] if quick else [])]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit)
        if process.returncode == 0:
            return Result.from_json(json.loads(output))
        last = errors.strip().splitlines()
        error = last[-1].removeprefix("Error: ") if last else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        error = f"it did not end within {limit:g} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its child processes
        process.wait()
    seconds = round(time.monotonic() - started, 1)
    return Result(name, (), seconds, now(), commit(), machine(), before, quick, error)


def show(result: Result) -> None:
    """Print the table and the notes of a bench."""
    title = f"{result.name}{', quick: the figures mean nothing' if result.quick else ''}, {result.seconds:.0f} s"
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
