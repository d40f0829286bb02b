"""The YAML head of README.md, as the Hugging Face hub shows it and `load_dataset` reads it.

It names the files of each configuration, their columns with all types, and the number of rows. So files with fewer
scores than others load together, and a missing file is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipelines.dataset.card.tables import SampledTables
from pipelines.ledger.entries import OUTCOMES, Outcome
from pipelines.ledger.versions import Version
from pipelines.stages.sinks.parquet import IMAGE, dtype_name

CONFIGS: dict[Outcome, str] = {"kept": "default", "rejected": "rejected", "quarantined": "quarantined"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
CATEGORIES = {
    "joint": ["text-to-image", "depth-estimation"],
    "depth": ["depth-estimation"],
    "depth-to-image": ["text-to-image", "depth-estimation"],
    "encode": ["depth-estimation"],
    "prepare": ["depth-estimation"],
}
GENERATED = ("joint", "depth-to-image")  # tasks whose images are synthetic
WITH_TERMS = ("model.base", "model.name")  # weights whose terms the head names, the first that is there
MOST_FILES = 2000  # of an outcome that the card names; each takes about 60 bytes
TOO_MANY = "data/too-many-to-name_see-README"
WHAT = {
    "joint": "RGB-D pairs: images and their depth, generated together from prompts",
    "depth": "Depth of the images of a corpus, estimated at each image's own size",
    "depth-to-image": "Images generated from prompts on given depth maps",
    "encode": "Latents and text embeddings of images with depth and captions, for training",
    "prepare": "Images of a corpus with captions and relative disparity by teachers, for training",
}


def metadata(
    version: Version, sampled: SampledTables, sources: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the fields of the head, ready for YAML. `sources` are those of the job's weights."""
    spec, kept = version.spec, version.counts.get("kept", 0)
    outcomes = [outcome for outcome in OUTCOMES if version.size_of(outcome).files]
    tags = ["rgb-d", "depth", *(["synthetic"] if spec.task in GENERATED else []), "jointdit", "croissant"]
    return {
        "pretty_name": " ".join(spec.name.split()),
        "license": spec.output.license,
        **(_license_of_weights(sources or {}) if spec.output.license == "other" else {}),
        "task_categories": CATEGORIES[spec.task],
        "tags": tags + (["point-cloud"] if spec.output.points.format != "none" else []),
        "size_categories": [next((name for limit, name in SIZES if kept < limit), "n>10M")],
        "configs": [
            {
                "config_name": CONFIGS[outcome],
                "data_files": [{"split": "train", "path": paths_of(version, outcome)}],
                **({"default": True} if outcome == "kept" else {}),
            }
            for outcome in outcomes
        ],
        "dataset_info": [_info(version, sampled, outcome) for outcome in outcomes],
    }


def paths_of(version: Version, outcome: Outcome) -> list[str]:
    """Return the tables of an outcome that the card names; one name that does not exist where they are too many.

    Without any name `load_dataset` would read all of data/, and so tables of other versions.
    """
    return version.files_of(outcome) if is_listed(version) else [TOO_MANY]


def is_listed(version: Version) -> bool:
    """Return whether the card names the tables of a version. A list of all would make it too long for the hub."""
    return max((size.files for size in version.sizes.values()), default=0) <= MOST_FILES


def _license_of_weights(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return name and link of the base weights' licence, which the head has beside `license: other`."""
    terms: Mapping[str, Any] = next((sources[key].get("terms", {}) for key in WITH_TERMS if key in sources), {})
    if not terms.get("license"):
        return {}
    name = re.sub(r"[^a-z0-9.+-]+", "-", str(terms["license"]).lower()).strip("-")
    link = str(terms.get("link", ""))
    return {"license_name": name, **({"license_link": link} if link.startswith(("http://", "https://")) else {})}


def _info(version: Version, sampled: SampledTables, outcome: Outcome) -> dict[str, Any]:
    size = version.size_of(outcome)
    return {
        "config_name": CONFIGS[outcome],
        "features": [{"name": field.name, **_feature(field.type)} for field in sampled.schemas[outcome]],
        "splits": [{"name": "train", "num_bytes": size.bytes, "num_examples": size.rows}],
        "download_size": size.bytes,
        "dataset_size": size.bytes,
    }


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Return a column's type as the `datasets` library writes it to YAML."""
    if kind == IMAGE:
        return {"dtype": "image"}
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in kind]}
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _feature(kind.value_type)
        nested: dict[str, Any] = {"list": inner["dtype"] if list(inner) == ["dtype"] else inner}
        return nested | ({"length": kind.list_size} if pa.types.is_fixed_size_list(kind) else {})
    return {"dtype": dtype_name(kind)}
