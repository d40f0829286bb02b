"""`jointdit bench`: one bench in this process, all of them each in a process of its own; cli.py gives it its place."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.tools.bench import BENCHES
from jointdit.errors import SpecError


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benches; --list tells which there are.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them: `make bench`.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Say what there is, and measure nothing.")] = False,
    gpu_like: Annotated[
        bool, typer.Option("--gpu-like", help="Of `pipeline`: with a model that waits as a GPU would.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run every step with as little as that takes; the figures mean nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for scripts.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Put the results into jobs/tools/BENCH.md and BENCH.json of the checkout.")
    ] = False,
) -> None:
    """Measure how fast the engine and the model are, beside something measured in the same run."""
    from jobs.report import say
    from jobs.tools.bench.running import measure_each

    if list_:
        for name, each in BENCHES.items():
            compared = f", compared with {each.compared_with}" if each.compared_with != "-" else ""
            apart = "" if each.in_all else "; not part of --all"
            say(f"{name:<16}{each.question}{compared}{apart}")
        return
    chosen = [name for name, each in BENCHES.items() if each.in_all] if all_ else list(names or ())
    if gpu_like:
        chosen = ["gpu-like" if name == "pipeline" else name for name in chosen]
    if unknown := [name for name in chosen if name not in BENCHES]:
        raise SpecError(f"there is no bench {unknown[0]!r}: the benches are {', '.join(BENCHES)}.")
    if not chosen:
        raise typer.BadParameter("say which: NAME, or --all; --list tells which there are.")
    if quick and write:
        raise typer.BadParameter("what --quick measures means nothing and is not written: leave one of the two out.")
    if not measure_each(chosen, quick=quick, as_json=as_json, write=write, apart=len(chosen) > 1 or write):
        raise typer.Exit(1)
