"""croissant.json: the dataset in terms of Croissant 1.0 (mlcommons.org/croissant).

It has a file set per outcome, which names exactly the files of the version, and a record set with the columns. Columns
without a Croissant type are left out: binary latents, and points.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pipelines.dataset.card.metadata import CONFIGS, WHAT, paths_of
from pipelines.dataset.card.tables import SampledTables
from pipelines.ledger.entries import OUTCOMES, Outcome
from pipelines.ledger.versions import Version
from pipelines.stages.sinks.parquet import DESCRIPTIONS, IMAGE

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def render(version: Version, sampled: SampledTables) -> bytes:
    """Return the content of the file."""
    spec = version.spec
    outcomes = [outcome for outcome in OUTCOMES if version.size_of(outcome).files]
    described = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": " ".join(spec.name.split()) or "dataset",
        "description": f"{WHAT[spec.task]}, by the JointDiT data engine.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": spec.output.license,
        "citeAs": "JointDiT (ICCV 2025), arXiv:2505.00482",
        "version": version_string(version),
        "datePublished": version.created,
        "distribution": [_file_set(version, outcome) for outcome in outcomes],
        "recordSet": [_record_set(sampled.schemas[outcome], outcome) for outcome in outcomes],
    }
    return (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def version_string(version: Version) -> str:
    """Return a version's number in the form that Croissant requires."""
    return f"{version.number}.0.0"


def _file_set(version: Version, outcome: Outcome) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{outcome}-files",
        "name": f"{outcome}-files",
        "description": f"The {outcome} samples of version {version.number}.",
        "encodingFormat": "application/x-parquet",
        "includes": paths_of(version, outcome),
    }


def _record_set(schema: pa.Schema, outcome: Outcome) -> dict[str, Any]:
    name = CONFIGS[outcome]
    fields = [_field(name, outcome, column) for column in schema]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"One record per sample that was {outcome}.",
        "key": {"@id": f"{name}/id"},
        "field": [field for field in fields if field is not None],
    }


def _field(records: str, outcome: Outcome, column: pa.Field) -> dict[str, Any] | None:
    described: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{records}/{column.name}",
        "name": column.name,
        "description": DESCRIPTIONS[column.name].replace("`", ""),
    }
    source = {"fileSet": {"@id": f"{outcome}-files"}, "extract": {"column": column.name}}
    kind = column.type
    if kind == IMAGE:
        image = {**source, "transform": {"jsonPath": "bytes"}}
        return {**described, "dataType": "sc:ImageObject", "source": image}
    if pa.types.is_struct(kind):
        scores = [
            {
                "@type": "cr:Field",
                "@id": f"{records}/{column.name}/{score.name}",
                "name": score.name,
                "dataType": "sc:Float",
                "source": {**source, "transform": {"jsonPath": score.name}},
            }
            for score in kind
        ]
        return {**described, "subField": scores}
    is_repeated = pa.types.is_list(kind)
    data_type = _data_type(kind.value_type if is_repeated else kind)
    if data_type is None:
        return None
    return {**described, "dataType": data_type, **({"repeated": True} if is_repeated else {}), "source": source}


def _data_type(kind: pa.DataType) -> str | None:
    if pa.types.is_string(kind):
        return "sc:Text"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else None
