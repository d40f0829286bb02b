"""Load the scheduler of a saved pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from jointdit.errors import InputError, ModelError
from jointdit.loading.checkpoint_files import wrap_load_errors
from jointdit.sampling.solvers import check_scheduler


def load_scheduler(folder: Path, index: Mapping[str, Any]) -> SchedulerMixin | None:
    """Load the scheduler that a pipeline's model_index.json names; None if it names none, or a FLUX pipeline lacks it.

    The scheduler of a FLUX pipeline tells schnell, which has no shift, from dev. Raises ModelError if it is not a
    scheduler of diffusers for flow matching.
    """
    _, name = index.get("scheduler") or (None, None)
    if name is None or (index.get("_class_name") != "JointDiTPipeline" and not (folder / "scheduler").is_dir()):
        return None
    kind: Any = getattr(diffusers, str(name), None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, SchedulerMixin)
    if not is_scheduler:
        raise ModelError(f"{folder}: its scheduler is {name}, which diffusers does not have: save the pipeline again.")
    with wrap_load_errors(f"{folder / 'scheduler'}: cannot be loaded as {name}"):
        scheduler = kind.from_pretrained(folder / "scheduler")
    try:
        check_scheduler(scheduler)
    except InputError as error:
        raise ModelError(f"{folder / 'scheduler'}: {error}") from error
    assert isinstance(scheduler, SchedulerMixin)
    return scheduler
