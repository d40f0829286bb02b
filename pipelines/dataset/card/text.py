"""README.md, rendered from the template README.md.jinja.

Names, prompts and reasons come from outside, so the template escapes every value that is not a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow as pa
import yaml

from pipelines.dataset.card.metadata import CONFIGS, GENERATED, WHAT, is_listed, metadata
from pipelines.dataset.card.summary import bars, summary
from pipelines.dataset.card.tables import SampledTables
from pipelines.ledger.entries import OUTCOMES, Job
from pipelines.ledger.versions import Version
from pipelines.model.weights.terms import Terms
from pipelines.stages.sinks.parquet import DESCRIPTIONS, IMAGE
from pipelines.store.safe_text import markdown_text

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "ray", "pyarrow", "numpy")
TERM_FIELDS = tuple(field.name for field in fields(Terms))
LONGEST = 160  # characters of a prompt


def render(
    job: Job, version: Version, sampled: SampledTables, figures: Sequence[str] = (), has_gallery: bool = True
) -> str:
    """Return the README.md of the dataset. `figures` are the paths of the figures that were drawn."""
    spec = version.spec
    licences = [str(source.get("terms", {}).get("license", "")) for source in job.sources.values()]
    return _template().render(
        head=_yaml(metadata(version, sampled, job.sources), width=1000),
        spec=spec,
        version=version,
        description=WHAT[spec.task],
        stamp=stamp(version),
        is_listed=is_listed(version),
        has_gallery=has_gallery and spec.task != "encode",
        figures={path.rsplit("/", 1)[-1]: path for path in figures},
        rows=sampled.rows,
        outcomes=OUTCOMES,
        planned=sum(version.counts.values()),
        other_configs=[CONFIGS[name] for name in OUTCOMES[1:] if version.size_of(name).files],
        depth_images=sampled.depth_images,
        depth=_summaries({"relative disparity, 1 nearest": sampled.disparity, "depth in metres": sampled.metres}),
        scores=_summaries(sampled.scores),
        scored=sampled.scored,
        scored_tables=sampled.scored_tables,
        columns=[
            (field.name, _type_name(field.type), DESCRIPTIONS.get(field.name, "")) for field in sampled.schemas["kept"]
        ],
        libraries=", ".join(f"{name} {number}" for name in LIBRARIES if (number := _installed(name))),
        asked=_yaml(spec.model_dump(mode="json", exclude_defaults=True)),
        fingerprint=_yaml(job.fingerprint),
        kept_by=_yaml(criteria)
        if (criteria := {key: value for key, value in version.criteria.items() if value})
        else "",
        weights=[_weights_row(field, source) for field, source in job.sources.items()],
        is_non_commercial=any("non-commercial" in licence for licence in licences),
        is_generated=spec.task in GENERATED,
    )


def stamp(version: Version) -> str:
    """Return the sentence that tells this version's card from every other."""
    return f"Version {version.number}, {version.created}."


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(text=markdown_text, cell=_cell, fenced=_fenced, shortened=_shortened, bars=bars)
    return environment.from_string(files(__package__).joinpath("README.md.jinja").read_text(encoding="utf-8"))


def _summaries(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: summary(array) for name, array in values.items() if len(array)}


def _yaml(value: Any, width: int = 80) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=width)


def _type_name(kind: pa.DataType) -> str:
    if kind == IMAGE:
        return "image"
    return f"struct of {kind.num_fields}" if pa.types.is_struct(kind) else str(kind)


def _installed(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return ""


def _weights_row(field: str, source: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return (spec field, origin, licence, link) of weights."""
    terms = Terms(**{key: value for key, value in source.get("terms", {}).items() if key in TERM_FIELDS})
    origin = str(source["value"])
    if source.get("commit"):
        origin = f"{origin.partition('@')[0]} at {source['commit']}"
    licence = f"{terms.license}{', gated on the hub' if terms.gated else ''}" if terms.license else "not known"
    return field, origin, licence, terms.link


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fenced(text: str) -> str:
    """Return a YAML code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"
