"""`jointdit train`: run a training spec by its recipe, with progress on the terminal and in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from jointdit.errors import SpecError
from jointdit.tiny.spec import AblationSpec, TrainSpec
from pipelines.spec.file import (
    apply_overrides,
    first_sentence,
    read_yaml,
    refuse_credentials,
    refuse_unusable,
    shown_value,
)
from pipelines.training.spec import AdapterJob

RECIPES: dict[str, type[BaseModel]] = {
    "tiny": TrainSpec,
    "adapter": AdapterJob,
    "ablation": AblationSpec,
}


def load_train_spec(path: Path, overrides: Sequence[str] = ()) -> TrainSpec | AdapterJob | AblationSpec:
    """Read a training spec; `recipe` selects the tiny checkpoint (default), an adapter, or the ablation.

    Raises:
        SpecError: the first mistake, in one sentence.
    """
    data: dict[str, Any] = apply_overrides(read_yaml(path), overrides)
    refuse_unusable(data)
    refuse_credentials(data)
    recipe = data.get("recipe", "tiny")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise SpecError(f"recipe {shown_value(recipe)} in {path} is unknown: choose one of {', '.join(RECIPES)}.")
    kind = RECIPES[recipe]
    try:
        spec = kind.model_validate(data)
    except ValidationError as error:
        raise SpecError(first_sentence(error, kind)) from None
    assert isinstance(spec, TrainSpec | AdapterJob | AblationSpec)
    return spec


def train_from_spec(path: Path, overrides: Sequence[str] = ()) -> Path:
    """Start or resume the training of a spec; return the path of the result."""
    spec = load_train_spec(path, overrides)
    if isinstance(spec, AdapterJob):
        from pipelines.training.run import run_training

        made = run_training(spec, lambda line: print(line, flush=True))
        print(f"adapter: {made.adapter}")
        return made.pipeline or made.adapter
    from jointdit.tiny.ablation import run_ablation
    from jointdit.tiny.recipe import train

    spec.output.mkdir(parents=True, exist_ok=True)
    with (spec.output / "train.log").open("a", encoding="utf-8") as log:

        def report(line: str) -> None:
            print(line, flush=True)
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            log.flush()

        return run_ablation(spec, report) if isinstance(spec, AblationSpec) else train(spec, report)
