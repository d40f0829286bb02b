"""The dataset card: README.md with Hugging Face metadata, and stats.json. Written anew with each published version.

    write(storage, job, version)              reads the scores of the version's tables, writes README.md and stats.json
    is_about(storage, version) -> bool        whether both are there and about this version
    render(job, version, scores) -> str       the card's text
    statistics(version, scores) -> dict       the content of stats.json

The metadata names exactly the files of this version, so `load_dataset(<the folder>)` sees neither a loser's file nor an
older version's: configuration `default` is what was kept, `rejected` and `quarantined` are the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from pipelines.ledger import OUTCOMES, Job, Outcome
from pipelines.publish import Version
from pipelines.quality import SCORES
from pipelines.sinks.parquet import DESCRIPTIONS, data_schema
from pipelines.spec import JobSpec, load_spec
from pipelines.storage import Storage

CONFIGS: dict[Outcome, str] = {"kept": "default", "rejected": "rejected", "quarantined": "quarantined"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
CATEGORIES = {
    "joint": ["text-to-image", "depth-estimation"],
    "depth": ["depth-estimation"],
    "depth-to-image": ["text-to-image", "depth-estimation"],
    "encode": ["depth-estimation"],
    "prepare": ["depth-estimation"],
}
WHAT = {
    "joint": "RGB-D pairs: pictures and their depth, generated together from prompts",
    "depth": "Depth of the pictures of a corpus, estimated at each picture's own size",
    "depth-to-image": "Pictures generated from prompts on given depth maps",
    "encode": "Latents and text embeddings of pictures with depth and captions, for training",
    "prepare": "Pictures of a corpus with captions and relative disparity by teachers, for training",
}
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 20


Scores = Mapping[str, Sequence[float]]  # of kept and rejected samples, by score


def write(storage: Storage, job: Job, version: Version) -> None:
    """Write README.md and stats.json. Raises TransientError and StoreError."""
    scores = read_scores(storage, version)
    storage.write_bytes("README.md", render(job, version, scores).encode())
    storage.write_bytes("stats.json", (json.dumps(statistics(version, scores), indent=2) + "\n").encode())


def is_about(storage: Storage, version: Version) -> bool:
    """Whether README.md and stats.json are those of this version."""
    try:
        text, figures = storage.read_bytes("README.md").decode(), json.loads(storage.read_bytes("stats.json"))
    except (FileNotFoundError, ValueError):
        return False
    return _stamp(version) in text and isinstance(figures, dict) and figures.get("version") == version.number


def read_scores(storage: Storage, version: Version) -> dict[str, list[float]]:
    """All finite scores of the version's kept and rejected samples; reads one column and no picture."""
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    for path in [*version.files_of("kept"), *version.files_of("rejected")]:
        with storage.open(path) as file:
            for quality in pq.read_table(file, columns=["quality"])["quality"].to_pylist():
                for name, value in (quality or {}).items():
                    if value is not None and np.isfinite(value):
                        scores.setdefault(name, []).append(value)
    return scores


def spec_of(version: Version) -> JobSpec:
    """The spec of the run that published the version."""
    return load_spec(version.spec)


def statistics(version: Version, scores: Scores) -> dict[str, Any]:
    """Counts, reasons, sizes, and each score's quantiles and histogram, ready for JSON."""
    return {
        "name": version.spec["name"],
        "task": version.spec["task"],
        "version": version.number,
        "created": version.created,
        "samples": sum(version.counts.values()),
        "counts": version.counts,
        "reasons": dict(sorted(version.reasons.items())),
        "superseded": version.superseded,
        "files": len(version.files),
        "bytes": sum(file.bytes for file in version.files),
        "scores": {name: _summary(values) for name, values in scores.items() if len(values)},
    }


def render(job: Job, version: Version, scores: Scores) -> str:
    """The README.md of the dataset."""
    spec = spec_of(version)
    metadata = yaml.safe_dump(_metadata(spec, version), sort_keys=False, allow_unicode=True, width=1000)
    sections = [
        f"---\n{metadata}---",
        f"# {_inline(spec.name)}",
        f"{WHAT[spec.task]}, by the JointDiT data engine. {_stamp(version)}",
        _usage(version),
        _counts(version),
        _score_table(scores),
        _columns(spec),
        _making(spec, job, version),
        _limits(spec),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _stamp(version: Version) -> str:
    return f"Version {version.number}, {version.created}."


def _metadata(spec: JobSpec, version: Version) -> dict[str, Any]:
    kept = version.counts.get("kept", 0)
    configs = [
        {"config_name": CONFIGS[outcome], "data_files": [{"split": "train", "path": paths}]}
        for outcome in OUTCOMES
        if (paths := version.files_of(outcome))
    ]
    return {
        "pretty_name": " ".join(spec.name.split()),
        "license": "other",
        "task_categories": CATEGORIES[spec.task],
        "tags": ["rgb-d", "depth", "synthetic", "jointdit"],
        "size_categories": [next((name for limit, name in SIZES if kept < limit), "n>10M")],
        "configs": configs,
    }


def _usage(version: Version) -> str:
    shown = 'rows[0]["rgb"], rows[0]["depth"]  # pictures; depth has 16 bits'
    look = "Look at it: [gallery/index.html](gallery/index.html). "
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
        f"{look}Figures: [stats.json](stats.json).",
    ]
    return "\n".join(lines) if version.files_of("kept") else "No sample was kept: see the counts below."


def _counts(version: Version) -> str:
    total = sum(version.counts.values())
    rows = [(name, version.counts.get(name, 0)) for name in OUTCOMES]
    lines = ["## Counts", "", "| outcome | samples | share |", "|---|---:|---:|"]
    lines += [f"| {name} | {count:,} | {count / max(total, 1):.1%} |" for name, count in [*rows, ("planned", total)]]
    if version.reasons:
        lines += ["", "Rejected by (a sample can have several reasons):", "", "| filter | samples |", "|---|---:|"]
        lines += [f"| `{_cell(kind)}` | {count:,} |" for kind, count in sorted(version.reasons.items())]
    lines += ["", "Each planned sample is in exactly one of these. The others are here too:"]
    lines[-1] += ' `load_dataset("<this folder>", "rejected")` and `"quarantined"`.'
    return "\n".join(lines)


def _score_table(scores: Scores) -> str:
    found = {name: _summary(values) for name, values in scores.items() if len(values)}
    if not found:
        return ""
    lines = ["## Scores of kept and rejected samples", "", "| score | 5 % | median | 95 % | histogram |"]
    lines.append("|---|---:|---:|---:|---|")
    for name, summary in found.items():
        quantiles = summary["quantiles"]
        cells = " | ".join(f"{quantiles[key]:.4g}" for key in ("0.05", "0.5", "0.95"))
        lines.append(f"| `{_cell(name)}` | {cells} | `{_bars(summary['histogram']['counts'])}` |")
    return "\n".join(lines)


def _columns(spec: JobSpec) -> str:
    lines = ["## Columns", "", "| column | type | meaning |", "|---|---|---|"]
    for field in data_schema(spec):
        kind = "image" if field.name in ("rgb", "depth") else str(field.type)
        lines.append(f"| `{field.name}` | `{_cell(kind)}` | {_cell(DESCRIPTIONS[field.name])} |")
    return "\n".join(lines)


def _making(spec: JobSpec, job: Job, version: Version) -> str:
    asked = spec.model_dump(mode="json", exclude_defaults=True)
    return "\n\n".join(
        [
            "## How it was made",
            f"With jointdit {_inline(version.code)}. The job:",
            _fenced(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)),
            "What decides its pixels (`model.weights` is a SHA-256 over the checkpoint's files, or the hub's commit):",
            _fenced(yaml.safe_dump(job.fingerprint, sort_keys=False, allow_unicode=True)),
        ]
    )


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
        "- The engine does not know the licence: set `license` above by those of the model's weights and of the input.",
    ]
    if spec.task == "prepare":
        lines.append("- The depth is a teacher's estimate, with the teacher's bias.")
    elif spec.task != "depth":
        lines.append("- The pictures are generated: they show nothing that exists, and what the model gets wrong.")
    return "\n".join(lines)


def _summary(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.float64)
    counts, edges = np.histogram(array, bins=BINS)
    return {
        "samples": len(array),
        "mean": float(array.mean()),
        "quantiles": {f"{q:g}": float(np.quantile(array, q)) for q in QUANTILES},
        "histogram": {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]},
    }


def _bars(counts: Sequence[int]) -> str:
    """A histogram as a line of blocks."""
    top = max(counts)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // top)] for count in counts)


def _inline(text: str) -> str:
    """Text of a spec as one line of Markdown that is nothing but text."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"
