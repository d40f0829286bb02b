"""What the commands print."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import track

console = Console(highlight=False)


def show_files(files: Iterable[Path]) -> None:
    """The path of each file as it is written."""
    for file in files:
        console.print(file, soft_wrap=True, markup=False)


def show_progress(steps: Iterable[int], total: int, what: str) -> None:
    """A bar over `total` steps, then one line."""
    for _ in track(
        steps, description="Rendering", total=total, console=console, transient=True, disable=not console.is_terminal
    ):
        pass
    console.print(f"{total} {what}", soft_wrap=True, markup=False)
