"""The text of README.md: how to load the dataset, what is in it, how it was made, and what to beware of.

Names, prompts and reasons come from outside: whatever is not a number of ours is escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import pyarrow as pa
import yaml

from pipelines.dataset.card.metadata import CONFIGS, GENERATED, WHAT, metadata
from pipelines.dataset.card.summary import bars, summary
from pipelines.dataset.card.tables import Seen, spec_of
from pipelines.ledger.entries import OUTCOMES, Job
from pipelines.ledger.versions import Version
from pipelines.model.weights.terms import Terms
from pipelines.spec.job import JobSpec
from pipelines.stages.sinks.parquet import DESCRIPTIONS, IMAGE
from pipelines.store.safe_text import markdown_text

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "ray", "pyarrow", "numpy")
TERM_FIELDS = tuple(each.name for each in fields(Terms))
LONGEST = 160  # characters of a prompt


def render(job: Job, version: Version, seen: Seen, figures: Sequence[str] = (), has_gallery: bool = True) -> str:
    """The README.md of the dataset. `figures`: paths of those that there are."""
    spec = spec_of(version)
    head = yaml.safe_dump(metadata(version, seen, job.sources), sort_keys=False, allow_unicode=True, width=1000)
    shown = {path.rsplit("/", 1)[-1]: path for path in figures}
    sections = [
        f"---\n{head}---",
        f"# {markdown_text(spec.name)}",
        f"{WHAT[spec.task]}, by the JointDiT data engine. {stamp(version)}",
        _usage(version, has_gallery),
        _samples(seen, shown),
        _counts(version),
        _depth(seen, shown),
        _scores(version, seen, shown),
        _columns(version, seen),
        _making(spec, job, version),
        _weights(job),
        _limits(spec),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def stamp(version: Version) -> str:
    """What tells this version's card from every other."""
    return f"Version {version.number}, {version.created}."


def _usage(version: Version, has_gallery: bool) -> str:
    shown = 'rows[0]["rgb"], rows[0]["depth"]  # images; depth has 16 bits'
    look = "Look at it: [gallery/index.html](gallery/index.html). " if has_gallery else ""
    if version.spec["task"] == "encode":
        shown, look = 'rows[0]["latents_rgb"]  # bytes of float16, see below', ""
    lines = [
        "```python",
        "from datasets import load_dataset",
        "",
        'rows = load_dataset("<this folder>", split="train")',
        shown,
        "```",
        "",
        f"{look}Figures: [stats.json](stats.json). For readers of Croissant: [croissant.json](croissant.json).",
    ]
    return "\n".join(lines) if version.files_of("kept") else "No sample was kept: see the counts below."


def _samples(seen: Seen, shown: Mapping[str, str]) -> str:
    """The sample sheet, and what its numbers are."""
    if "samples.jpg" not in shown:
        return ""
    lines = ["## Samples", "", f"![Images above their depth, near bright]({shown['samples.jpg']})", ""]
    lines += ["Unselected: the first ones of some files.", "", "| | id | prompt |", "|---:|---|---|"]
    for number, row in enumerate(seen.rows, 1):
        lines.append(f"| {number} | {markdown_text(row.id)} | {markdown_text(_shortened(row.prompt or ''))} |")
    if "points.ply" in shown:
        lines += ["", f"Their points side by side: [points.ply]({shown['points.ply']})."]
    return "\n".join(lines)


def _depth(seen: Seen, shown: Mapping[str, str]) -> str:
    if "depth.svg" not in shown:
        return ""
    image = f"![Histograms of disparity and of depth in metres]({shown['depth.svg']})"
    return f"## Depth\n\n{image}\n\nOf {seen.depth_images:,} kept images, spread over the files."


def _scores(version: Version, seen: Seen, shown: Mapping[str, str]) -> str:
    found = {name: summary(values) for name, values in seen.scores.items() if len(values)}
    if not found:
        return ""
    lines = ["## Scores of kept and rejected samples", ""]
    if "scores.svg" in shown:
        lines += [f"![Histograms of the scores]({shown['scores.svg']})", ""]
    lines += ["| score | 5 % | median | 95 % | histogram |", "|---|---:|---:|---:|---|"]
    for name, each in found.items():
        quantiles = each["quantiles"]
        cells = " | ".join(f"{quantiles[key]:.4g}" for key in ("0.05", "0.5", "0.95"))
        lines.append(f"| `{_cell(name)}` | {cells} | `{bars(each['histogram']['counts'])}` |")
    everything = version.counts.get("kept", 0) + version.counts.get("rejected", 0)
    if seen.scored < everything:
        read, tables = seen.scored_tables
        lines += ["", f"Of {seen.scored:,} of {everything:,} samples: {read:,} of {tables:,} files, evenly spread."]
    return "\n".join(lines)


def _counts(version: Version) -> str:
    total = sum(version.counts.values())
    rows = [(name, version.counts.get(name, 0)) for name in OUTCOMES]
    lines = ["## Counts", "", "| outcome | samples | share |", "|---|---:|---:|"]
    lines += [f"| {name} | {count:,} | {count / max(total, 1):.1%} |" for name, count in [*rows, ("planned", total)]]
    if version.reasons:
        lines += ["", "Rejected by (a sample can have several reasons):", "", "| filter | samples |", "|---|---:|"]
        lines += [f"| `{_cell(kind)}` | {count:,} |" for kind, count in sorted(version.reasons.items())]
    lines += ["", "Each planned sample is in exactly one of these."]
    if others := [CONFIGS[name] for name in OUTCOMES[1:] if version.files_of(name)]:
        loads = " and ".join(f'`load_dataset("<this folder>", "{name}")`' for name in others)
        lines[-1] += f" The others are here too: {loads}."
    return "\n".join(lines)


def _columns(version: Version, seen: Seen) -> str:
    lines = ["## Columns", "", "| column | type | meaning |", "|---|---|---|"]
    for field in seen.schemas["kept"]:
        kind = f"struct of {field.type.num_fields}" if pa.types.is_struct(field.type) else str(field.type)
        kind = "image" if field.type == IMAGE else kind
        lines.append(f"| `{_cell(field.name)}` | `{_cell(kind)}` | {_cell(DESCRIPTIONS.get(field.name, ''))} |")
    return "\n".join(lines)


def _making(spec: JobSpec, job: Job, version: Version) -> str:
    asked = spec.model_dump(mode="json", exclude_defaults=True)
    libraries = ", ".join(f"{name} {number}" for name in LIBRARIES if (number := _installed(name)))
    kept_by = {name: value for name, value in version.criteria.items() if value}
    setter = f"`jointdit refilter` of version {version.refilter}" if version.refilter else "the job"
    return "\n\n".join(
        [
            "## How it was made",
            f"With jointdit {markdown_text(version.code)}; where it was published: {libraries}. The job:",
            _fenced(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)),
            "What decides its pixels (`model.weights` is a SHA-256 over the checkpoint's files, or the hub's commit):",
            _fenced(yaml.safe_dump(job.fingerprint, sort_keys=False, allow_unicode=True)),
            f"What its samples are kept by, as {setter} says, with all thresholds:",
            _fenced(yaml.safe_dump(kept_by, sort_keys=False)) if kept_by else "Nothing is rejected.",
        ]
    )


def _installed(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return ""


def _weights(job: Job) -> str:
    """Whose weights made it, and under what terms those are."""
    if not job.sources:
        return ""
    lines = ["## Weights", "", "| weights | from | licence |", "|---|---|---|"]
    for field, source in job.sources.items():
        terms = Terms(**{key: value for key, value in source.get("terms", {}).items() if key in TERM_FIELDS})
        at = f" at {source['commit']}" if source.get("commit") else ""
        where = str(source["value"]).partition("@")[0] if at else str(source["value"])
        licence = f"{terms.license}{', gated on the hub' if terms.gated else ''}" if terms.license else "not known"
        link = f" ({markdown_text(terms.link)})" if terms.link else ""
        lines.append(f"| `{field}` | {markdown_text(where + at)} | {markdown_text(licence)}{link} |")
    if any("non-commercial" in str(source.get("terms", {}).get("license", "")) for source in job.sources.values()):
        lines += ["", "**A non-commercial licence is among them: read it before this dataset is used or passed on.**"]
    return "\n".join([*lines, "", "Their terms may bind what is made with them, and so may those of the input."])


def _limits(spec: JobSpec) -> str:
    if spec.task == "encode":
        return "## Limits\n\n- Only a model with the same VAE and text encoders (`encoders`) can be trained on it."
    fov = f"{spec.output.points.fov_degrees:g} degrees from top to bottom"
    lines = [
        "## Limits",
        "",
        "- `depth` is relative disparity: an affine map of inverse depth, per image. It has no unit, and values of two "
        "images cannot be compared.",
        "- Depth in metres, z = 1 / (A + B d), rests on `z_near`, `z_far` and the field of view. Where "
        f"`intrinsics_source` is `assumed`, the camera is an assumption ({fov}), not a measurement; `range_source` in "
        "`params` says the same of the depth range.",
    ]
    if spec.output.license == "other":
        lines.append(
            "- The engine does not know the licence: set `output.license` by those of the model's weights and of the "
            "input."
        )
    if spec.output.points.calibrate is not None:
        lines.append(
            "- Where `range_source` is `calibrated`, metres are those of "
            f"{markdown_text(spec.output.points.calibrate.model)}, with its errors; `quality.calibration_residual` and "
            "`quality.calibration_inlier_ratio` say how well the two maps agree."
        )
    if spec.task == "prepare":
        lines.append("- The depth is a teacher's estimate, with the teacher's bias.")
    elif spec.task in GENERATED:
        lines.append("- The images are generated: they show nothing that exists, and what the model gets wrong.")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"
