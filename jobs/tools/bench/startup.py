"""Seconds that `jointdit --help` and `jointdit plan` take in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.tools.bench.frame import Line, Reach, Settings, Side, Spread, Turn, alternate

ROWS = 100
CLI = ("-c", "import sys; from jobs.cli import main; sys.exit(main())", "jointdit")  # as the console script does


def measure(settings: Settings) -> Iterator[Line]:
    """Yield one line per command. `plan` reads its input and does not start Ray."""
    prompts = settings.folder / "prompts.txt"
    prompts.write_text("".join(f"prompt {number}\n" for number in range(ROWS)))
    spec = settings.folder / "job.yaml"
    spec.write_text(f"task: joint\ninput: {{uri: {prompts}}}\noutput: {{uri: {settings.folder / 'out'}}}\n")
    pairs = 1 if settings.quick else 9
    commands = {"--help": (0.5, ("--help",), "Usage:"), "plan": (2.0, ("plan", str(spec)), f"{ROWS} samples")}
    for name, (limit, arguments, answer) in commands.items():
        ours = _process([sys.executable, *CLI[:2], *arguments], answer, settings.folder)
        bare = _process([sys.executable, "-c", "pass"], "", settings.folder)
        pairs_of_turns = alternate(ours, bare, pairs=pairs, seconds=settings.seconds / 2, warm_up=not settings.quick)
        seconds = Spread.of([turn.value for turn in pairs_of_turns.ours])
        notes = [f"{pairs_of_turns.ratio.median:.1f} times `python -c pass`; fresh processes, files in the page cache"]
        bare_seconds = Spread.of([turn.value for turn in pairs_of_turns.theirs])
        work = dict(pairs_of_turns.ours[0].work)
        yield Line(f"jointdit {name}", "s", seconds, seconds, bare_seconds, Reach("at most", limit), work, tuple(notes))


def _process(command: Sequence[str], answer: str, folder: Path) -> Side:
    def side() -> Turn:
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        is_right = done.returncode == 0 and answer in done.stdout
        return Turn(seconds, {"processes": 1, "answers": is_right})

    return side
