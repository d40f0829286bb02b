"""`jointdit train`: read a training spec, report to the terminal and to the log beside the checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from jointdit.errors import SpecError
from jointdit.training.spec import TrainSpec
from pipelines.spec_file import apply_overrides, first_sentence, read_yaml


def load_train_spec(path: Path, overrides: Sequence[str] = ()) -> TrainSpec:
    """Read a training spec.

    Raises:
        SpecError: one sentence on the first thing that is wrong.
    """
    try:
        return TrainSpec.model_validate(apply_overrides(read_yaml(path), overrides))
    except ValidationError as error:
        raise SpecError(first_sentence(error, TrainSpec)) from None


def train_from_spec(path: Path, overrides: Sequence[str] = ()) -> Path:
    """Train what the spec says, from where an interrupted run stopped; returns the folder of the finished pipeline."""
    spec = load_train_spec(path, overrides)
    from jointdit.training.run import train

    spec.output.mkdir(parents=True, exist_ok=True)
    with (spec.output / "train.log").open("a", encoding="utf-8") as log:

        def report(line: str) -> None:
            print(line, flush=True)
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            log.flush()

        return train(spec, report)
