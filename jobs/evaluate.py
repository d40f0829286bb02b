"""`jointdit evaluate`: how good a checkpoint is, on held-out scenes and on benchmarks.

All arguments are checked first. Then the parts run one by one, and each prints its table. The output folder gets
report.md and report.json with all tables, sheets of unselected samples, and the metrics of each benchmark image as CSV.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.table import Table

from jobs.evaluation.benchmarks import BenchmarkChoice, benchmark_table, check_benchmarks
from jobs.evaluation.context import SceneEvaluation, Sizes
from jobs.evaluation.depth import depth_tables, lifting_tables, step_tables, style_tables, vae_tables
from jobs.evaluation.generation import joint_tables, restyle_tables
from jobs.report import console, say
from jointdit.errors import InputError, SpecError
from jointdit.evaluation.published import depth_to_image_table, joint_models_table, robust_table, text_to_image_table
from jointdit.evaluation.tables import ResultTable, markdown_report, without_nan
from pipelines.model.loading import load_pipeline
from pipelines.model.weights.node_cache import local_path
from pipelines.model.weights.pins import pin
from pipelines.spec.file import first_sentence
from pipelines.spec.job import ModelSpec
from pipelines.spec.weights_address import parse_address

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.evaluation.features import Clip, FeatureNetwork
    from jointdit.evaluation.transformers_depth import TransformersDepth

SCENE_PARTS: dict[str, Callable[[SceneEvaluation], list[ResultTable]]] = {
    "vae": vae_tables,
    "depth": depth_tables,
    "styles": style_tables,
    "lifting": lifting_tables,
    "steps": step_tables,
    "joint": joint_tables,
    "restyle": restyle_tables,
}

NOT_COMPARABLE = (
    'Tables titled "Published" hold figures of other protocols. They show where the field is; do not compare them '
    "with the figures of this run."
)


@dataclass(frozen=True)
class EvaluationSettings:
    """Arguments of `jointdit evaluate`. Empty `parts`: all parts on scenes, or none if benchmarks are given."""

    output: Path
    model: str | None
    base: str | None
    adapter: str | None
    dtype: str | None
    sizes: Sizes
    baselines: Sequence[str] = ()
    baseline_space: str | None = None
    benchmarks: Sequence[BenchmarkChoice] = ()
    limit: int | None = None
    long_side: int | None = None
    features: str | None = None
    clip: str | None = None
    parts: Sequence[str] = ()


def run_evaluation(settings: EvaluationSettings) -> Path:
    """Run all parts and return the path of report.md.

    Raises:
        InputError, ModelError, SpecError: an argument is wrong; nothing has been computed then.
    """
    parts = _parts(settings)
    check_benchmarks(settings.benchmarks)
    features, clip = _load_networks(settings)
    baselines = _load_baselines(settings)
    pipe, device = _load_model(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    name = settings.adapter or settings.model or "tiny"

    tables: list[ResultTable] = []
    scenes = SceneEvaluation(pipe, name, settings.sizes, settings.output, baselines, features, clip)
    for part in parts:
        for table in SCENE_PARTS[part](scenes):
            show_table(table)
            tables.append(table)
    if settings.benchmarks:
        table = benchmark_table(
            settings.benchmarks,
            pipe,
            name,
            settings.sizes,
            baselines,
            settings.limit,
            settings.long_side,
            settings.output,
        )
        show_table(table)
        tables += [table, robust_table(), joint_models_table()]
    tables += [depth_to_image_table()] if "restyle" in parts else []
    tables += [text_to_image_table()] if "joint" in parts else []
    return _write_report(settings, name, device, tables, scenes.details)


def evaluation_json(report: Path) -> dict[str, Any]:
    """Return the content of report.json beside report.md, with the path of the latter."""
    content: dict[str, Any] = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))
    return {"report": str(report), **content}


def show_table(table: ResultTable) -> None:
    """Print a result table."""
    shown = Table(title=table.title, caption=table.protocol)
    for heading in ("", *(column.name for column in table.columns)):
        shown.add_column(heading, justify="right" if heading else "left")
    for cells in table.text_rows():
        shown.add_row(*cells)
    console.print(shown)
    for note in table.notes:
        say(f"  {note}")


def _parts(settings: EvaluationSettings) -> list[str]:
    unknown = [part for part in settings.parts if part not in SCENE_PARTS]
    if unknown:
        raise InputError(f"--part {unknown[0]}: use one of {', '.join(SCENE_PARTS)}.")
    if settings.parts:
        return [part for part in SCENE_PARTS if part in settings.parts]
    return [] if settings.benchmarks else list(SCENE_PARTS)


def _load_networks(settings: EvaluationSettings) -> tuple[FeatureNetwork | str | None, Clip | None]:
    """Load the networks of FID and CLIP score; "vae" stands for the evaluated model's own, which is loaded later."""
    if settings.features is None and settings.clip is None:
        return None, None
    from jointdit.evaluation.features import load_clip, load_features
    from jointdit.evaluation.generation import check_installed

    check_installed()
    features = settings.features
    loaded = features if features in (None, "vae") else load_features(_local("--features", features))
    return loaded, None if settings.clip is None else load_clip(_local("--clip", settings.clip))


def _load_baselines(settings: EvaluationSettings) -> list[TransformersDepth]:
    if not settings.baselines:
        return []
    import torch

    from jointdit.evaluation.transformers_depth import TransformersDepth

    device = "cuda" if torch.cuda.is_available() else "cpu"
    space: Any = settings.baseline_space
    return [TransformersDepth(_local("--baseline", name), device, space) for name in settings.baselines]


def _local(option: str, name: str) -> str:
    """Return the folder of a model of transformers; a hub name is pinned and downloaded like the model itself.

    Without a network, transformers would retry each file for most of a minute before it reports an error.
    """
    from jointdit.loading.checkpoint_files import PICKLES

    with contextlib.suppress(ValueError):  # pin() explains a wrong address
        if Path(name).suffix in PICKLES or parse_address(name).kind == "local":
            return name
    return str(local_path(pin(option, name, "model")))


def _load_model(settings: EvaluationSettings) -> tuple[JointDiTPipeline, str]:
    """Return the pipeline and its device; dtype defaults to float32 on a CPU and bfloat16 on a GPU."""
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = {"name": settings.model, "base": settings.base, "adapter": settings.adapter}
    given = {key: value for key, value in source.items() if value is not None}
    dtype = settings.dtype or ("float32" if device == "cpu" else "bfloat16")
    try:
        spec = ModelSpec.model_validate({**given, "dtype": dtype})
    except ValidationError as error:
        raise SpecError(first_sentence(error, ModelSpec)) from None
    return load_pipeline(spec, device), device


def _write_report(
    settings: EvaluationSettings, name: str, device: str, tables: Sequence[ResultTable], details: dict[str, Any]
) -> Path:
    sizes = settings.sizes
    said = {
        "model": name,
        "device": device,
        "scenes": sizes.scenes,
        "prompts": sizes.prompts,
        "depth_steps": sizes.depth_steps,
        "steps": sizes.steps,
        "ensemble": sizes.ensemble,
    }
    report = {"settings": said, "tables": [table.as_json() for table in tables], "details": details}
    (settings.output / "report.json").write_text(
        json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    path = settings.output / "report.md"
    path.write_text(markdown_report(f"Evaluation of {name}", tables, f"{NOT_COMPARABLE}\n"), encoding="utf-8")
    return path
