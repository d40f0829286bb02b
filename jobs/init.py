"""`jointdit init`: a commented job spec to start from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jointdit.errors import InputError

EXAMPLES = Path(__file__).parent  # the example specs ship in this package


class Example(StrEnum):
    """The tasks that have an example spec."""

    JOINT = "joint"
    DEPTH = "depth"
    DEPTH_TO_IMAGE = "depth-to-image"
    PREPARE = "prepare"
    ENCODE = "encode"


def init(
    task: Annotated[Example, typer.Argument(metavar="TASK", help=f"One of {', '.join(Example)}.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The new file.", show_default="TASK.yaml")
    ] = None,
) -> None:
    """Write a commented job spec with all its keys. An existing file is never overwritten."""
    from jobs.report import say

    path = output or Path(f"{task}.yaml")
    example = EXAMPLES / f"{task.replace('-', '_')}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(_text_for(example, path))
    except FileExistsError:
        raise InputError(f"{path} exists already: give another file with -o.") from None
    say(f"{path}: set input.uri and output.uri, then `jointdit plan {path}` and `jointdit run {path}`")


def _text_for(example: Path, path: Path) -> str:
    """Return an example spec with paths that are right outside of a checkout."""
    text = example.read_text(encoding="utf-8").replace(f"jobs/{example.name}", str(path))
    return text.replace("uri: jobs/demo_prompts.txt", f"uri: {EXAMPLES / 'demo_prompts.txt'}")
