"""The command `jointdit bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.tools.bench import BENCHES
from jointdit.errors import SpecError


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benches to run; --list shows all.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Run all benches, as `make bench` does.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the benches and exit.")] = False,
    gpu_like: Annotated[bool, typer.Option("--gpu-like", help="Run the bench gpu-like in place of pipeline.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run every step at the smallest size; the figures mean nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write the results to jobs/tools/BENCH.md and BENCH.json.")
    ] = False,
) -> None:
    """Measure the speed of the engine and the model against baselines in the same run."""
    from jobs.report import say
    from jobs.tools.bench.running import run_benches

    if list_:
        for name, entry in BENCHES.items():
            baseline = f", compared with {entry.baseline}" if entry.baseline != "-" else ""
            say(f"{name:<24}{entry.measures}{baseline}{'' if entry.in_all else '; not part of --all'}")
        return
    chosen = [name for name, entry in BENCHES.items() if entry.in_all] if all_ else list(names or ())
    if gpu_like:
        chosen = ["gpu-like" if name == "pipeline" else name for name in chosen]
    if unknown := [name for name in chosen if name not in BENCHES]:
        raise SpecError(f"there is no bench {unknown[0]!r}: choose one of {', '.join(BENCHES)}.")
    if not chosen:
        raise typer.BadParameter("no bench is named: give a NAME or --all; --list shows the names.")
    if quick and write:
        raise typer.BadParameter("--quick figures mean nothing and are not written: leave out --quick or --write.")
    if not run_benches(chosen, quick=quick, as_json=as_json, write=write):
        raise typer.Exit(1)
